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
    """The last tokens of a T5's encoder, without a vector."""

    _target_: str = "urepa.models.text_encoders.t5.T5"
    model: str = setting(
        "a local folder with tokenizer/ and text_encoder/, or a hub id, NAME@REVISION; its last part is recorded"
    )
    encoder_number: int = setting(
        "which text encoder of the folder it is: 1 of PixArt and Chroma, 2 of Flux, 3 of SD3", ge=1, le=3
    )
    width: int = setting("width of a token: 4096 of T5-XXL", ge=1, le=SIZE)
    length: int = setting(
        "tokens of a caption, its last included; what is longer is cut: 120 of PixArt-α, 300 of PixArt-Σ, 256 of SD3, "
        "512 of Flux",
        ge=2,
        le=SIZE,
    )
    padding: T5Padding = setting(
        "the positions behind a caption's end: masked, as PixArt has them; attended, as SD3 and Flux have them; or "
        "one_counts, the first of them alone, as Chroma has them"
    )
    lowercase: bool = setting("in lower case, as PixArt's pipeline has prompts")
    computed_in: Floats = setting("what the network is read and computed in")
    null_text: NullText = setting("what stands for no caption: the record of the empty prompt, or zeros")

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
        padded = {"attended": ", padding included,", "one_counts": " and the first position behind them,"}
        many = f"at most {number(self.length)}" if str(self.padding) != "attended" else number(self.length)
        many += padded.get(str(self.padding), "")
        case = ", in lower case" if self.lowercase else ""
        return (
            f"Captions{case} are encoded by the T5 of {self.name}, frozen, in {self.computed_in}: its last tokens, "
            f"{many} of width {number(self.width)}."
        )
