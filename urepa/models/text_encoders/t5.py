"""T5's encoder, the text encoder of PixArt, SD3, Flux and Chroma."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from urepa.core.declared_keys import SIZE, setting
from urepa.core.descriptions import number
from urepa.core.text_protocols import NullText
from urepa.models.text_encoders.pipeline_sizes import SHORT, Floats, FromFolder, T5Padding

if TYPE_CHECKING:
    from urepa.models.text_encoders.text_transformer_net import TextTransformer


@dataclass
class T5(FromFolder):
    """The tokens of the last layer of a T5 encoder, without a vector."""

    _target_: str = "urepa.models.text_encoders.t5.T5"
    model: str = setting(
        "a local folder with tokenizer/ and text_encoder/, or a hub id, NAME@REVISION; its last part is recorded"
    )
    encoder_number: int = setting(
        "number of the text encoder in the folder: 1 in PixArt and Chroma, 2 in Flux, 3 in SD3", ge=1, le=3
    )
    width: int = setting("width of a token: 4096 in T5-XXL", ge=1, le=SIZE)
    length: int = setting(
        "tokens of a caption, with its end token; longer captions are truncated. 120 in PixArt-α, 300 in PixArt-Σ, "
        "256 in SD3, 512 in Flux",
        ge=2,
        le=SIZE,
    )
    padding: T5Padding = setting(
        "padding after a caption's end: masked, as in PixArt; attended, as in SD3 and Flux; or one_counts, masked "
        "except its first position, as in Chroma"
    )
    lowercase: bool = setting("convert captions to lower case, as PixArt's pipeline does")
    computed_in: Floats = setting("data type in which the network is loaded and computed")
    null_text: NullText = setting("null condition: the record of the empty prompt, or zeros")

    pooled_width: ClassVar[int] = 0

    @property
    def numbers(self) -> tuple[int, ...]:
        return (self.encoder_number,)

    def stored_as(self) -> str:
        endings = [self.name, "t5", str(self.length), SHORT[str(self.computed_in)]]
        endings += [] if str(self.padding) == "masked" else [str(self.padding)]
        endings += ["lowercase"] if self.lowercase else []
        return "_".join(endings)

    def build(self) -> TextTransformer:
        from urepa.models.text_encoders.t5_net import t5

        floats = str(self.computed_in)
        padding = str(self.padding)
        return t5(self.model, self.encoder_number, self.length, self.width, padding, self.lowercase, floats)

    def description(self) -> str:
        padded = {"attended": ", padding included,", "one_counts": " and the first position after them,"}
        many = f"at most {number(self.length)}" if str(self.padding) != "attended" else number(self.length)
        many += padded.get(str(self.padding), "")
        case = " in lower case" if self.lowercase else ""
        return (
            f"Captions are encoded{case} by the T5 of {self.name}, frozen, in {self.computed_in}: the tokens of its "
            f"last layer, {many} of width {number(self.width)}."
        )
