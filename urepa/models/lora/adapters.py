"""Low-rank adapters beside frozen weights."""

from __future__ import annotations

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
    """Low-rank adapters (Hu et al. 2022, arXiv 2106.09685); the backbone says which of its modules `targets` and
    `blocks` mean."""

    _target_: str = "urepa.models.lora.adapters.LoRA"
    rank: int = setting("rank of each adapter", ge=1, le=SIZE)
    alpha: int | None = setting(
        "the scale is alpha / rank; null: the rank, so that ranks compare at scale 1", ge=1, le=SIZE
    )
    dropout: float = setting("dropout on the input of an adapter", ge=0, le=1 - TINY)
    targets: Targets = setting("which layers have adapters: the projections of attention, or the 3x3 convolutions too")
    blocks: Blocks = setting("where these layers are: in the middle block, or in every block")
    group: ClassVar[str] = "lora"
    has_adapters: ClassVar[bool] = True

    @property
    def tag(self) -> str:
        return str(self.rank)

    def check(self, backbone: Backbone) -> None:
        backbone.check_adapters(str(self.targets), str(self.blocks))

    def build(self, backbone: nn.Module) -> None:
        from urepa.models.lora.lora_net import add_lora

        add_lora(backbone, self.rank, self.alpha, self.dropout, str(self.targets), str(self.blocks))

    def description(self, parameters: int, tensors: int) -> list[str | Formula]:
        alpha = self.rank if self.alpha is None else self.alpha
        dropout = f" with dropout {number(self.dropout)} on their input" if self.dropout else ""
        return [
            f"The backbone is frozen. Low-rank adapters (LoRA) of rank r = {self.rank} and α = {alpha}, scale "
            f"{number(alpha / self.rank)}, stand beside {ADAPTED[str(self.targets)]} in {WHERE[str(self.blocks)]}"
            f"{dropout}: {number(parameters)} parameters in {tensors} tensors.",
            Formula(r"W' = W + \frac{\alpha}{r}\, B A"),
        ]

    def trained(self, noun: str) -> str:
        targets, blocks = markdown(str(self.targets)), markdown(str(self.blocks))
        return f"LoRA of rank {self.rank} ({targets}, blocks: {blocks}) was trained"
