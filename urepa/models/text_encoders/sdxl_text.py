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
    """The tokens of the last layer but one of CLIP-L and of OpenCLIP bigG side by side, without a final norm, and
    bigG's projected vector: what StableDiffusionXLPipeline encodes a prompt to."""

    _target_: str = "urepa.models.text_encoders.sdxl_text.SDXLText"
    model: str = setting(
        "a local folder with tokenizer/, tokenizer_2/, text_encoder/ and text_encoder_2/, or a hub id, NAME@REVISION; "
        "its last part is recorded"
    )
    width: int = setting("width of a token, of both encoders together: 768 + 1280", ge=1, le=SIZE)
    pooled_width: int = setting("width of the second encoder's projected vector", ge=1, le=SIZE)
    length: int = setting("tokens of a caption, its first and last included; what is longer is cut", ge=3, le=SIZE)
    null_text: NullText = setting(
        "what stands for no caption: zeros, as the pipeline has them where no negative prompt is given, or the record "
        "of the empty prompt"
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
            f"tokens of the last layer but one of both, joined to {number(self.length)} of width {number(self.width)}, "
            f"padding included, and the second one's projected vector of width {number(self.pooled_width)}."
        )
