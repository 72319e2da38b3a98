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
    """The tokens of one layer of Gemma 2, without a vector. Those of the last layer equal SanaPipeline's prompt
    embeddings without its complex human instruction; those of the last but one, with Lumina2Pipeline's system prompt
    before the captions, equal that pipeline's."""

    _target_: str = "urepa.models.text_encoders.gemma.Gemma"
    model: str = setting(
        "a local folder with tokenizer/ and text_encoder/, or a hub id, NAME@REVISION; its last part is recorded"
    )
    width: int = setting("width of a token: 2304 in Gemma-2-2B", ge=1, le=SIZE)
    layer: int = setting(
        "layer of the tokens, counted from the end: -1 is the last, with the final norm, as in Sana; -2 as in Lumina",
        ge=-SIZE,
        le=-1,
    )
    length: int = setting("tokens of a caption, with its start token; longer captions are truncated", ge=2, le=SIZE)
    lowercase: bool = setting("convert captions to lower case, as Sana's pipeline does")
    before: str | None = setting(
        "text that is put before every caption except the empty one, and encoded with it, as Lumina2's pipeline does "
        "with its system prompt; null: none"
    )
    computed_in: Floats = setting("data type in which the network is loaded and computed")
    null_text: NullText = setting("null condition: the record of the empty prompt, or zeros")

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
        case = " in lower case" if self.lowercase else ""
        case += "" if self.before is None else f' after "{self.before.strip()}"'
        return (
            f"Captions are encoded{case} by the Gemma of {self.name}, frozen, in {self.computed_in}: the tokens of its "
            f"{which}, at most {number(self.length)} of width {number(self.width)}."
        )
