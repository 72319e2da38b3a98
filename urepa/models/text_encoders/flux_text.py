"""The two text encoders of Flux."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from urepa.core.declared_keys import SIZE, setting
from urepa.core.descriptions import number
from urepa.core.text_protocols import NullText
from urepa.models.text_encoders.pipeline_sizes import SHORT, Floats, FromFolder

if TYPE_CHECKING:
    from urepa.models.text_encoders.text_transformer_net import TextTransformer


@dataclass
class FluxText(FromFolder):
    """The tokens of the last layer of T5's encoder, and the state of CLIP-L's end-of-text token as the vector. Both
    equal FluxPipeline's prompt embeddings."""

    _target_: str = "urepa.models.text_encoders.flux_text.FluxText"
    model: str = setting(
        "a local folder with tokenizer/, tokenizer_2/, text_encoder/ and text_encoder_2/, or a hub id, NAME@REVISION; "
        "its last part is recorded"
    )
    width: int = setting("width of a token: 4096 of T5-XXL", ge=1, le=SIZE)
    pooled_width: int = setting("width of the vector: 768 of CLIP-L", ge=1, le=SIZE)
    length: int = setting(
        "tokens of a caption for T5, with its end token; longer captions are truncated", ge=2, le=SIZE
    )
    clip_length: int = setting("tokens of a caption for CLIP, with its start and end tokens", ge=3, le=SIZE)
    computed_in: Floats = setting("data type in which T5 is loaded and computed; CLIP's is float32")
    null_text: NullText = setting("null condition: the record of the empty prompt, or zeros")

    @property
    def numbers(self) -> tuple[int, ...]:
        return (1, 2)

    def stored_as(self) -> str:
        return f"{self.name}_flux_{self.clip_length}_{self.length}_{SHORT[str(self.computed_in)]}"

    def build(self) -> TextTransformer:
        from urepa.models.text_encoders.flux_text_net import flux_text

        lengths = self.clip_length, self.length
        return flux_text(self.model, lengths, self.width, self.pooled_width, str(self.computed_in))

    def description(self) -> str:
        return (
            f"Captions are encoded by the two text encoders of {self.name} (CLIP-L and T5), frozen: the last tokens of "
            f"T5 in {self.computed_in}, {number(self.length)}, padding included, of width {number(self.width)}, and "
            f"the state of CLIP-L's end-of-text token as one vector of width {number(self.pooled_width)}."
        )
