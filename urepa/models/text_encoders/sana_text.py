"""Gemma 2 as Sana's pipeline calls it by default: after an instruction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from urepa.core.errors import UserError
from urepa.models.text_encoders.gemma import Gemma

if TYPE_CHECKING:
    from urepa.models.text_encoders.text_transformer_net import TextTransformer


@dataclass
class SanaText(Gemma):
    """Gemma's tokens of captions after an instruction (`before`), which equal SanaPipeline's prompt embeddings with its
    complex human instruction. Of the instruction's own tokens only the first and the last are returned."""

    _target_: str = "urepa.models.text_encoders.sana_text.SanaText"

    def check(self) -> None:
        super().check()
        if not self.before:
            raise UserError(
                "data.text_encoder.before is the instruction that this text encoder puts before captions; give it, or "
                "text_encoder@data.text_encoder=gemma without one"
            )

    def stored_as(self) -> str:
        return f"{super().stored_as()}_dropped"

    def build(self) -> TextTransformer:
        from urepa.models.text_encoders.gemma_net import gemma

        floats, known = str(self.computed_in), (self.layer, self.length, self.width, self.lowercase, self.before)
        return gemma(self.model, *known, floats, drops_before=True)

    def description(self) -> str:
        return f"{super().description()} Of the text before captions only the first and the last token are kept."
