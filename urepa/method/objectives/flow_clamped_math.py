"""The mathematics of `flow_clamped`."""

from __future__ import annotations

import numpy as np

from urepa.method.objectives.flow_math import FlowMath


class ClampedFlowMath(FlowMath):
    """`FlowMath` whose training times are clamped to [lowest, highest]; those of sampling are from 1 to 0."""

    def __init__(self, path: str, draw: str, lowest: float, highest: float) -> None:
        super().__init__(path, draw)
        self.lowest, self.highest = lowest, highest

    def sample_t(self, rng: np.random.Generator) -> float:
        return min(max(super().sample_t(rng), self.lowest), self.highest)
