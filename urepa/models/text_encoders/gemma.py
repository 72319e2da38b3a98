"""Gemma 2, the text encoder of Sana and Lumina."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from urepa.core.declared_keys import SIZE, setting
from urepa.core.descriptions import number
from urepa.core.hashing import digest64
from urepa.core.text_protocols import NullText
from urepa.models.text_encoders.pipeline_sizes import SHORT, Floats, FromFolder

if TYPE_CHECKING:
    from urepa.models.text_encoders.text_transformer_net import TextTransformer


@dataclass
class Gemma(FromFolder):
    """The tokens of a layer of a Gemma 2, without a vector; of the last layer what SanaPipeline encodes a prompt to,
    without its instruction to a language model; of the last but one, with its system prompt before captions, what
    Lumina2Pipeline does."""

    _target_: str = "urepa.models.text_encoders.gemma.Gemma"
    model: str = setting(
        "a local folder with tokenizer/ and text_encoder/, or a hub id, NAME@REVISION; its last part is recorded"
    )
    width: int = setting("width of a token: 2304 of Gemma-2-2B", ge=1, le=SIZE)
    layer: int = setting(
        "whose tokens, counted from the end: -1 is the last, with the final norm, of Sana; -2 of Lumina",
        ge=-SIZE,
        le=-1,
    )
    length: int = setting("tokens of a caption, its first included; what is longer is cut", ge=2, le=SIZE)
    lowercase: bool = setting("captions in lower case, as Sana's pipeline has prompts")
    before: str | None = setting(
        "what stands before every caption but the empty one, and is encoded and kept with it, as Lumina's pipeline has "
        "its system prompt; null: nothing"
    )
    computed_in: Floats = setting("what the network is read and computed in")
    null_text: NullText = setting("what stands for no caption: the record of the empty prompt, or zeros")

    pooled_width: ClassVar[int] = 0

    def stored_as(self) -> str:
        more = "_lowercase" if self.lowercase else ""
        if self.before is not None:
            more += f"_{digest64('before', self.before):016x}"[:9]
        return f"{self.name}_gemma_{-self.layer}_{self.length}_{SHORT[str(self.computed_in)]}{more}"

    def build(self) -> TextTransformer:
        from urepa.models.text_encoders.gemma_net import gemma

        floats = str(self.computed_in)
        return gemma(self.model, self.layer, self.length, self.width, self.lowercase, self.before, floats)

    def description(self) -> str:
        which = "last layer, after the final norm" if self.layer == -1 else f"layer {self.layer}, counted from the end"
        case = ", in lower case" if self.lowercase else ""
        case += "" if self.before is None else f' behind "{self.before.strip()}"'
        return (
            f"Captions{case} are encoded by the Gemma of {self.name}, frozen, in {self.computed_in}: the tokens of its "
            f"{which}, at most {number(self.length)} of width {number(self.width)}."
        )
