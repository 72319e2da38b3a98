"""Mistral Small 3, the text encoder of Flux.2 [dev]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from urepa.core.declared_keys import SIZE, setting
from urepa.core.descriptions import number
from urepa.core.errors import UserError
from urepa.core.text_protocols import NullText
from urepa.models.text_encoders.pipeline_sizes import SHORT, Floats, FromFolder

if TYPE_CHECKING:
    from urepa.models.text_encoders.text_transformer_net import TextTransformer


@dataclass
class Mistral3(FromFolder):
    """The tokens of some layers of Mistral 3, concatenated along their width; there is no vector. The caption is a
    user's message after a system message in the tokenizer's chat template. The tokens equal Flux2Pipeline's prompt
    embeddings."""

    _target_: str = "urepa.models.text_encoders.mistral3.Mistral3"
    model: str = setting(
        "a local folder with tokenizer/ and text_encoder/, or a hub id, NAME@REVISION; its last part is recorded"
    )
    width: int = setting("width of a token of all the layers together: 3 x 5120", ge=1, le=SIZE)
    joined: list[int] = setting(
        "the layers, numbered as in hidden_states: 0 is the embedding, 1 the first layer", ge=0, le=SIZE
    )
    length: int = setting("tokens of system message and caption together; longer ones are truncated", ge=2, le=SIZE)
    computed_in: Floats = setting("data type in which the network is loaded and computed")
    null_text: NullText = setting("null condition: the record of the empty prompt, or zeros")

    pooled_width: ClassVar[int] = 0

    def check(self) -> None:
        if not self.joined or min(self.joined) < 0:
            raise UserError(f"data.text_encoder.joined={list(self.joined)}: give layers, counted from 0, as [10,20,30]")

    def stored_as(self) -> str:
        layers = "-".join(map(str, self.joined))
        return f"{self.name}_mistral3_{layers}_{self.length}_{SHORT[str(self.computed_in)]}"

    def build(self) -> TextTransformer:
        from urepa.models.text_encoders.mistral3_net import mistral3

        return mistral3(self.model, list(self.joined), self.length, self.width, str(self.computed_in))

    def description(self) -> str:
        return (
            f"Captions, as a message after Flux.2's system message, are encoded by the Mistral 3 of {self.name}, "
            f"frozen, in {self.computed_in}: the tokens of the layers {', '.join(map(str, self.joined))} side by side, "
            f"{number(self.length)} of width {number(self.width)}, system message and padding included."
        )
