"""The head of iREPA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from urepa.core.declared_keys import SIZE, setting
from urepa.core.errors import UserError

if TYPE_CHECKING:
    from urepa.method.heads.spatial_net import SpatialHead


@dataclass
class Spatial:
    """One convolution, 3x3 in iREPA, and bilinear interpolation to the target's grid."""

    _target_: str = "urepa.method.heads.spatial.Spatial"
    kernel: int = setting("rows and columns of the convolution's kernel, an odd number", 3, ge=1, le=SIZE)
    resizes: ClassVar[bool] = True

    def check(self) -> None:
        if self.kernel % 2 == 0:
            raise UserError(f"head.kernel={self.kernel}: give an odd number, with which the grid keeps its size")

    def build(self, *, in_width: int, out_width: int) -> SpatialHead:
        from urepa.method.heads.spatial_net import SpatialHead

        return SpatialHead(self.kernel, in_width=in_width, out_width=out_width)

    def description(self) -> str:
        layer = f"one {self.kernel}×{self.kernel} convolution"
        return f"{layer}, and where the grids differ bilinear interpolation to the target's after it"
