"""The three text encoders of SD3 and SD3.5."""

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
class SD3Text(FromFolder):
    """The tokens of the last layer but one of CLIP-L and of OpenCLIP bigG, concatenated along their width and padded
    with zeros to the width of T5's; after them the tokens of the last layer of T5's encoder; and the projected
    vectors of both CLIPs. They equal StableDiffusion3Pipeline's prompt embeddings."""

    _target_: str = "urepa.models.text_encoders.sd3_text.SD3Text"
    model: str = setting(
        "a local folder with tokenizer/, tokenizer_2/ and _3/, text_encoder/, text_encoder_2/ and _3/, or a hub id, "
        "NAME@REVISION; its last part is recorded"
    )
    width: int = setting("width of a token: 4096 of T5-XXL", ge=1, le=SIZE)
    pooled_width: int = setting("width of the vector, of both CLIPs together: 768 + 1280", ge=1, le=SIZE)
    clip_length: int = setting("tokens of a caption for the CLIPs, with their start and end tokens", ge=3, le=SIZE)
    t5_length: int = setting(
        "tokens of a caption for T5, with its end token; longer captions are truncated and counted", ge=2, le=SIZE
    )
    computed_in: Floats = setting("data type in which T5 is loaded and computed; the CLIPs' is float32")
    null_text: NullText = setting("null condition: the record of the empty prompt, or zeros")

    cut_by: ClassVar[str] = "t5_length"

    @property
    def length(self) -> int:
        """The positions of a record."""
        return self.clip_length + self.t5_length

    @property
    def numbers(self) -> tuple[int, ...]:
        return (1, 2, 3)

    def stored_as(self) -> str:
        return f"{self.name}_sd3_{self.clip_length}_{self.t5_length}_{SHORT[str(self.computed_in)]}"

    def build(self) -> TextTransformer:
        from urepa.models.text_encoders.sd3_text_net import sd3_text

        lengths = self.clip_length, self.t5_length
        return sd3_text(self.model, lengths, self.width, self.pooled_width, str(self.computed_in))

    def description(self) -> str:
        widths = number(self.width), number(self.pooled_width)
        return (
            f"Captions are encoded by the three text encoders of {self.name} (CLIP-L, OpenCLIP bigG and T5), frozen: "
            f"the tokens of the last layer but one of both CLIPs, joined to {number(self.clip_length)} with zeros up "
            f"to width {widths[0]}, the {number(self.t5_length)} last tokens of T5 in {self.computed_in} after "
            f"them, padding included, and the projected vectors of both CLIPs, of width {widths[1]}."
        )
