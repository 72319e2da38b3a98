"""The head of iREPA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from urepa.method.heads.spatial_net import SpatialHead


@dataclass
class Spatial:
    """One 3x3 convolution, and bilinear interpolation to the target's grid."""

    _target_: str = "urepa.method.heads.spatial.Spatial"
    resizes: ClassVar[bool] = True

    def check(self) -> None:
        """Nothing to check: any settings in their ranges are valid together."""

    def build(self, *, in_width: int, out_width: int) -> SpatialHead:
        from urepa.method.heads.spatial_net import SpatialHead

        return SpatialHead(in_width=in_width, out_width=out_width)

    def description(self) -> str:
        return "one 3×3 convolution, and where the grids differ bilinear interpolation to the target's after it"
