"""The mathematics of `flow_data`.

Shapes: B batch. x_t = (1−t)·x0 + t·ε; times are floats in [0, 1], with the noise at 1.
"""

from __future__ import annotations

from torch import Tensor

from urepa.method.objectives.flow_math import FlowMath


class FlowDataMath(FlowMath):
    """x0 on the straight path, with the loss of the velocity that it implies: v = (x_t − x0)/max(t, least_time), so
    that the squared error of v is that of x0 divided by max(t, least_time)² (JiT, arXiv 2511.13720).

    Args:
        draw: as in `FlowMath`.
        least_time: in (0,1]; JiT's code has 0.05.
    """

    def __init__(self, draw: str, least_time: float) -> None:
        super().__init__("linear", draw)
        self.least_time = least_time

    def target(self, x0: Tensor, noise: Tensor, t_B: Tensor) -> Tensor:
        return x0

    def loss_weight(self, t_B: Tensor) -> Tensor:
        return t_B.clamp(min=self.least_time) ** -2

    def to_x0(self, x_t: Tensor, prediction: Tensor, t_B: Tensor) -> Tensor:
        return prediction

    def to_velocity(self, x_t: Tensor, prediction: Tensor, t_B: Tensor) -> Tensor:
        return (x_t - prediction) / t_B.clamp(min=self.least_time).view(-1, 1, 1, 1)
