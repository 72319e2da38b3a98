"""The head of iREPA with a hidden layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from urepa.core.declared_keys import SIZE, setting

if TYPE_CHECKING:
    from urepa.method.heads.spatial_net import HiddenSpatialHead


@dataclass
class HiddenSpatial:
    """A 3x3 convolution, SiLU and a dense layer on each token, and bilinear interpolation to the target's grid."""

    _target_: str = "urepa.method.heads.hidden_spatial.HiddenSpatial"
    hidden: int = setting("width between the two layers", ge=1, le=SIZE)
    resizes: ClassVar[bool] = True

    def check(self) -> None:
        """Nothing to check: any settings in their ranges are valid together."""

    def build(self, *, in_width: int, out_width: int) -> HiddenSpatialHead:
        from urepa.method.heads.spatial_net import HiddenSpatialHead

        return HiddenSpatialHead(self.hidden, in_width=in_width, out_width=out_width)

    def description(self) -> str:
        layers = f"a 3×3 convolution to width {self.hidden}, SiLU, and a dense layer on each token by itself"
        return f"{layers}, and where the grids differ bilinear interpolation to the target's after them"
