"""The two text encoders of SDXL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from urepa.core.declared_keys import SIZE, setting
from urepa.core.descriptions import number
from urepa.core.text_protocols import NullText
from urepa.models.text_encoders.pipeline_sizes import FromFolder

if TYPE_CHECKING:
    from urepa.models.text_encoders.text_transformer_net import TextTransformer


@dataclass
class SDXLText(FromFolder):
    """The concatenated tokens of the second-to-last layers of CLIP-L and OpenCLIP bigG, without a final norm, and
    bigG's projected vector, as computed by StableDiffusionXLPipeline."""

    _target_: str = "urepa.models.text_encoders.sdxl_text.SDXLText"
    model: str = setting(
        "a local folder with tokenizer/, tokenizer_2/, text_encoder/ and text_encoder_2/, or a hub id, NAME@REVISION; "
        "its last part is recorded"
    )
    width: int = setting("width of a token, the sum of both encoders' widths: 768 + 1280", ge=1, le=SIZE)
    pooled_width: int = setting("width of the second encoder's projected vector", ge=1, le=SIZE)
    length: int = setting(
        "tokens of a caption, with start and end tokens; longer captions are truncated", ge=3, le=SIZE
    )
    null_text: NullText = setting(
        "null condition: zeros, which the pipeline uses if no negative prompt is given, or the record of the empty "
        "prompt"
    )

    @property
    def numbers(self) -> tuple[int, ...]:
        return (1, 2)

    def stored_as(self) -> str:
        return f"{self.name}_sdxl_{self.length}"

    def build(self) -> TextTransformer:
        from urepa.models.text_encoders.sdxl_text_net import sdxl_text

        return sdxl_text(self.model, self.length, self.width, self.pooled_width)

    def description(self) -> str:
        return (
            f"Captions are encoded by the two text encoders of {self.name} (CLIP-L and OpenCLIP bigG), frozen: the "
            f"tokens of both second-to-last layers, concatenated to {number(self.length)} of width "
            f"{number(self.width)}, padding included, and the second one's projected vector of width "
            f"{number(self.pooled_width)}."
        )
