"""UMT5's encoder, the text encoder of AuraFlow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from urepa.core.declared_keys import SIZE, setting
from urepa.core.descriptions import number
from urepa.core.text_protocols import NullText
from urepa.models.text_encoders.pipeline_sizes import SHORT, Floats, FromFolder

if TYPE_CHECKING:
    from urepa.models.text_encoders.text_transformer_net import TextTransformer


@dataclass
class UMT5(FromFolder):
    """The tokens of the last layer of UMT5's encoder, 0 after a caption's end; there is no vector. The tokens equal
    AuraFlowPipeline's prompt embeddings."""

    _target_: str = "urepa.models.text_encoders.umt5.UMT5"
    model: str = setting(
        "a local folder with tokenizer/ and text_encoder/, or a hub id, NAME@REVISION; its last part is recorded"
    )
    width: int = setting("width of a token: 2048 of AuraFlow's", ge=1, le=SIZE)
    length: int = setting("tokens of a caption, with its end token; longer captions are truncated", ge=2, le=SIZE)
    computed_in: Floats = setting("data type in which the network is loaded and computed")
    null_text: NullText = setting("null condition: the record of the empty prompt, or zeros")

    pooled_width: ClassVar[int] = 0

    def stored_as(self) -> str:
        return f"{self.name}_umt5_{self.length}_{SHORT[str(self.computed_in)]}"

    def build(self) -> TextTransformer:
        from urepa.models.text_encoders.t5_net import umt5

        return umt5(self.model, self.length, self.width, str(self.computed_in))

    def description(self) -> str:
        return (
            f"Captions are encoded by the UMT5 of {self.name}, frozen, in {self.computed_in}: its last tokens, at most "
            f"{number(self.length)} of width {number(self.width)}."
        )
