"""Sensor values of the GPU during training."""

from __future__ import annotations

import warnings

import torch


class GpuSensors:
    """Power and utilisation of this process's GPU, through NVML; no values without a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.speak = device.type == "cuda"
        if self.speak:
            try:
                self.read()
            except Exception as error:  # noqa: BLE001  NVML has many errors: a shared GPU or a container may refuse
                warnings.warn(f"GPU power and utilisation are not logged: {error}", stacklevel=2)
                self.speak = False

    def read(self) -> dict[str, float]:
        """`gpu/power_w` in watts, `gpu/utilization` in per cent of the time, `gpu/memory_gib` at its peak so far."""
        if not self.speak:
            return {}
        return {
            "gpu/power_w": torch.cuda.power_draw(self.device) / 1000,
            "gpu/utilization": float(torch.cuda.utilization(self.device)),
            "gpu/memory_gib": torch.cuda.max_memory_allocated(self.device) / 2**30,
        }
