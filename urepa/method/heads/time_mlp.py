"""The head of REPA, conditioned on the time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from urepa.core.declared_keys import SIZE, setting

if TYPE_CHECKING:
    from urepa.method.heads.mlp_net import TimeMLPHead


@dataclass
class TimeMLP:
    """Three dense layers with SiLU between them, the inner ones scaled and shifted by the sample's time."""

    _target_: str = "urepa.method.heads.time_mlp.TimeMLP"
    hidden: int = setting("width of the two inner layers", ge=1, le=SIZE)
    resizes: ClassVar[bool] = False

    def check(self) -> None:
        """Nothing to check: any settings in their ranges are valid together."""

    def build(self, *, in_width: int, out_width: int) -> TimeMLPHead:
        from urepa.method.heads.mlp_net import TimeMLPHead

        return TimeMLPHead(self.hidden, in_width=in_width, out_width=out_width)

    def description(self) -> str:
        return (
            f"three dense layers, {self.hidden} wide within, with SiLU between them, on each token by itself. The "
            "outputs x of the two inner ones become x·(1 + a(t)) + b(t), where a and b come from the sinusoid of t "
            "through two dense layers and are 0 at first"
        )
