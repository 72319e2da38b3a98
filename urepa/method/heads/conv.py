"""The head of `track_a`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

from urepa.core.declared_keys import SIZE, setting

if TYPE_CHECKING:
    from urepa.method.heads.conv_net import ConvHead


class Upsample(Enum):
    after = "after"
    before = "before"


@dataclass
class Conv:
    """1x1 convolutions with GELU between them, and bilinear interpolation to the target's grid."""

    _target_: str = "urepa.method.heads.conv.Conv"
    depth: int = setting("number of 1x1 convolutions", ge=1, le=SIZE)
    upsample: Upsample = setting("to the target's grid: after or before projecting")
    resizes: ClassVar[bool] = True

    def check(self) -> None:
        """Nothing to check: any settings in their ranges are valid together."""

    def build(self, *, in_width: int, out_width: int) -> ConvHead:
        from urepa.method.heads.conv_net import ConvHead

        return ConvHead(self.depth, str(self.upsample), in_width=in_width, out_width=out_width)

    def description(self) -> str:
        one = self.depth == 1
        layers = "one 1×1 convolution" if one else f"{self.depth} layers of 1×1 convolution with GELU between them"
        return f"{layers}, and bilinear interpolation to the target's grid {self.upsample} projecting where they differ"
