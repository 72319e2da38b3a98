"""all-MiniLM-L6-v2 with the tokens of several of its layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from urepa.core.declared_keys import setting
from urepa.core.descriptions import number
from urepa.core.errors import UserError
from urepa.models.text_encoders.minilm import MiniLM

if TYPE_CHECKING:
    from urepa.models.text_encoders.text_transformer_net import TextTransformer


@dataclass
class MiniLMLayers(MiniLM):
    """all-MiniLM-L6-v2 with the stacked tokens of several layers beside the tokens of one layer and the vector."""

    _target_: str = "urepa.models.text_encoders.minilm_layers.MiniLMLayers"
    layers: list[int] = setting("layers whose tokens are recorded, in this order, counted from 0", ge=0, le=5)

    layers_width: ClassVar[int] = 384

    def check(self) -> None:
        if not self.layers or len(set(self.layers)) < len(self.layers):
            raise UserError(f"data.text_encoder.layers={list(self.layers)}: give different layers, as [0,1,2]")

    def stored_as(self) -> str:
        return f"{super().stored_as()}_layers_{'-'.join(map(str, self.layers))}"

    def build(self) -> TextTransformer:
        from urepa.models.text_encoders.minilm_net import minilm

        return minilm(self._place(), self.layer, self.length, self.width, list(self.layers))

    def description(self) -> str:
        return (
            f"{super().description()} The tokens of {number(len(self.layers))} of its layers are a part of their own."
        )
