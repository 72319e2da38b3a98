"""DDPM that predicts the velocity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from urepa.method.objectives.ddpm_epsilon import DDPMEpsilon

if TYPE_CHECKING:
    from urepa.method.objectives.ddpm_math import DDPMMath


@dataclass
class DDPMVelocity(DDPMEpsilon):
    """The same diffusion; the backbone predicts v = √ᾱ·ε − √(1−ᾱ)·x0 (Salimans & Ho 2022, §4)."""

    _target_: str = "urepa.method.objectives.ddpm_velocity.DDPMVelocity"

    prediction_type: ClassVar[str] = "v_prediction"
    predicts: ClassVar[tuple[str, str, str]] = (
        *("v", "the velocity v"),
        r"v = \sqrt{\bar\alpha_t}\, \epsilon - \sqrt{1 - \bar\alpha_t}\, x_0",
    )
    weight_formula: ClassVar[str] = r"\min(\mathrm{SNR}, \gamma) / (\mathrm{SNR} + 1)"

    def build(self) -> DDPMMath:
        from urepa.method.objectives.ddpm_math import VelocityMath

        return VelocityMath(self.beta_start, self.beta_end, str(self.beta_schedule), self.timesteps, self.min_snr)
