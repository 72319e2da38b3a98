"""The head of SimpleTuner's REPA and U-REPA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from urepa.method.heads.layer_norm_linear_net import LayerNormLinearHead


@dataclass
class LayerNormLinear:
    """A LayerNorm and a dense layer on each token, and bilinear interpolation to the target's grid."""

    _target_: str = "urepa.method.heads.layer_norm_linear.LayerNormLinear"
    resizes: ClassVar[bool] = True

    def check(self) -> None:
        """Nothing to check: there are no settings."""

    def build(self, *, in_width: int, out_width: int) -> LayerNormLinearHead:
        from urepa.method.heads.layer_norm_linear_net import LayerNormLinearHead

        return LayerNormLinearHead(in_width=in_width, out_width=out_width)

    def description(self) -> str:
        layers = "a LayerNorm and a dense layer on each token by itself"
        return f"{layers}, and where the grids differ bilinear interpolation to the target's after them"
