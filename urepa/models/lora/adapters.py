"""Low-rank adapters beside frozen weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

from urepa.core.backbone_protocols import Backbone
from urepa.core.declared_keys import SIZE, TINY, setting
from urepa.core.descriptions import Formula, number
from urepa.core.escaping import markdown

if TYPE_CHECKING:
    from torch import nn

PROJECTIONS = "the query, key, value and output projections of every attention layer"
ADAPTED = {
    "attention": PROJECTIONS,
    "attention_conv": f"{PROJECTIONS} and the 3×3 convolutions of every residual block",
}
WHERE = {"mid": "the middle block", "all": "every block"}


class Targets(Enum):
    attention = "attention"
    attention_conv = "attention_conv"


class Blocks(Enum):
    mid = "mid"
    all = "all"


@dataclass
class LoRA:
    """Low-rank adapters (Hu et al. 2022, arXiv 2106.09685), with options for rank-stabilised LoRA and for DoRA. The
    backbone translates `targets` and `blocks` to names of its modules."""

    _target_: str = "urepa.models.lora.adapters.LoRA"
    rank: int = setting("rank of each adapter", ge=1, le=SIZE)
    alpha: int | None = setting(
        "the scale is alpha / rank, or alpha / sqrt(rank) with use_rslora; null: the rank, so that ranks compare at "
        "scale 1",
        ge=1,
        le=SIZE,
    )
    dropout: float = setting("dropout on the input of an adapter", ge=0, le=1 - TINY)
    targets: Targets = setting("layers with adapters: the projections of attention, or also the 3x3 convolutions")
    blocks: Blocks = setting("blocks with adapters: the middle block, or every block")
    use_rslora: bool = setting("rank-stabilised LoRA: a scale of alpha / sqrt(rank), for one alpha at all ranks", False)
    use_dora: bool = setting("DoRA: the norms of the adapted weights' rows are separate trainable parameters", False)
    group: ClassVar[str] = "lora"
    has_adapters: ClassVar[bool] = True

    @property
    def tag(self) -> str:
        return str(self.rank)

    def check(self, backbone: Backbone) -> None:
        backbone.check_adapters(str(self.targets), str(self.blocks))

    def build(self, backbone: nn.Module) -> None:
        from urepa.models.lora.lora_net import add_lora

        add_lora(
            *(backbone, self.rank, self.alpha, self.dropout, str(self.targets), str(self.blocks)),
            use_rslora=self.use_rslora,
            use_dora=self.use_dora,
        )

    @property
    def kind(self) -> str:
        """LoRA, rank-stabilised LoRA, DoRA or both."""
        return f"{'rank-stabilised ' if self.use_rslora else ''}{'DoRA' if self.use_dora else 'LoRA'}"

    def description(self, parameters: int, tensors: int) -> list[str | Formula]:
        alpha = self.rank if self.alpha is None else self.alpha
        scale = f"{alpha / math.sqrt(self.rank):.4g}" if self.use_rslora else number(alpha / self.rank)
        dropout = f" with dropout {number(self.dropout)} on their input" if self.dropout else ""
        lengths = ", and the norms m of the adapted weights' rows train too" if self.use_dora else ""
        adapted = r"W + \frac{\alpha}{" + (r"\sqrt{r}" if self.use_rslora else "r") + r"}\, B A"
        turned = r"W' = m\, \frac{V}{\lVert V \rVert}, \qquad"
        return [
            f"The backbone is frozen. Low-rank adapters ({self.kind}) of rank r = {self.rank} and α = {alpha}, scale "
            f"{scale}, are added to {ADAPTED[str(self.targets)]} in {WHERE[str(self.blocks)]}"
            f"{dropout}{lengths}: {number(parameters)} parameters in {tensors} tensors.",
            Formula(rf"{turned} V = {adapted}" if self.use_dora else rf"W' = {adapted}"),
        ]

    def trained(self, noun: str) -> str:
        targets, blocks = markdown(str(self.targets)), markdown(str(self.blocks))
        return f"{self.kind} of rank {self.rank} ({targets}, blocks: {blocks}) was trained"
