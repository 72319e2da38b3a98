"""The head of FlexTok with REPA: REPA's head, followed by interpolation to the teacher's grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from urepa.core.declared_keys import SIZE, setting

if TYPE_CHECKING:
    from urepa.method.heads.mlp_net import ResizedMLPHead

RATIO = 4  # the inner layers' width divided by the tap's, if `hidden` is null


@dataclass
class MLPResized:
    """Three dense layers with SiLU between them, on each token by itself, then bilinear interpolation to the target's
    grid."""

    _target_: str = "urepa.method.heads.mlp_resized.MLPResized"
    hidden: int | None = setting("width of the two inner layers; null: four times the tap's", ge=1, le=SIZE)
    resizes: ClassVar[bool] = True

    def check(self) -> None:
        """Nothing to check: any settings in their ranges are valid together."""

    def build(self, *, in_width: int, out_width: int) -> ResizedMLPHead:
        from urepa.method.heads.mlp_net import ResizedMLPHead

        hidden = RATIO * in_width if self.hidden is None else self.hidden
        return ResizedMLPHead(hidden, in_width=in_width, out_width=out_width)

    def description(self) -> str:
        width = "four times the tap's width" if self.hidden is None else f"{self.hidden} wide"
        return (
            f"three dense layers, {width} within, with SiLU between them, on each token by itself, and where the grids "
            "differ bilinear interpolation to the target's after them"
        )
