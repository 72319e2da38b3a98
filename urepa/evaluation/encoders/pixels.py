"""The declaration of averaged pixels as features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from urepa.core.declared_keys import SIZE, setting

if TYPE_CHECKING:
    from urepa.evaluation.encoders.pixels_net import PixelsNetwork


@dataclass
class Pixels:
    """The image averaged over a grid."""

    _target_: str = "urepa.evaluation.encoders.pixels.Pixels"
    grid: int = setting("rows and columns of the averaged image", ge=1, le=SIZE)

    def build(self) -> PixelsNetwork:
        from urepa.evaluation.encoders.pixels_net import PixelsNetwork

        return PixelsNetwork(self.grid)
