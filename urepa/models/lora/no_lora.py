"""No adapters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from urepa.core.descriptions import Formula

if TYPE_CHECKING:
    from torch import nn


@dataclass
class NoLoRA:
    """The whole backbone trains."""

    _target_: str = "urepa.models.lora.no_lora.NoLoRA"
    group: ClassVar[str] = "backbone"
    has_adapters: ClassVar[bool] = False
    tag: ClassVar[str] = "none"

    def check(self, backbone: Any) -> None:
        """No check: all weights of every backbone can be trained."""

    def build(self, backbone: nn.Module) -> None:
        backbone.requires_grad_(True)

    def description(self, parameters: int, tensors: int) -> list[str | Formula]:
        return ["The backbone itself is trained; there are no adapters."]

    def trained(self, noun: str) -> str:
        return f"The whole {noun} was trained"
