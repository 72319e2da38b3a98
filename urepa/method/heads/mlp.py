"""The head of REPA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from urepa.core.declared_keys import SIZE, setting

if TYPE_CHECKING:
    from urepa.method.heads.mlp_net import MLPHead


@dataclass
class MLP:
    """Three dense layers with SiLU between them, on each token by itself."""

    _target_: str = "urepa.method.heads.mlp.MLP"
    hidden: int = setting("width of the two inner layers", ge=1, le=SIZE)
    resizes: ClassVar[bool] = False

    def check(self) -> None:
        """Nothing to check: any settings in their ranges are valid together."""

    def build(self, *, in_width: int, out_width: int) -> MLPHead:
        from urepa.method.heads.mlp_net import MLPHead

        return MLPHead(self.hidden, in_width=in_width, out_width=out_width)

    def description(self) -> str:
        return f"three dense layers, {self.hidden} wide within, with SiLU between them, on each token by itself"
