"""The names of the samplers, without torch (`urepa.method.ddpm_sampling`, `urepa.method.flow_sampling`)."""

from __future__ import annotations

from enum import Enum


class Sampler(Enum):
    ddim = "ddim"
    dpmsolver = "dpmsolver"  # DPM-Solver++(2M)
    euler = "euler"
    heun = "heun"
    sde = "sde"  # Euler-Maruyama


TITLES = {"ddim": "DDIM", "dpmsolver": "DPM-Solver++(2M)", "euler": "Euler", "heun": "Heun", "sde": "Euler-Maruyama"}
