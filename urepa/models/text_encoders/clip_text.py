"""The text encoder of a CLIP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from urepa.core.declared_keys import SIZE, setting
from urepa.core.descriptions import number
from urepa.core.text_protocols import NullText
from urepa.models.text_encoders.pipeline_sizes import FromFolder, Padding

if TYPE_CHECKING:
    from urepa.models.text_encoders.text_transformer_net import TextTransformer


@dataclass
class CLIPText(FromFolder):
    """The tokens of a layer of a CLIP's text encoder, and the state of its end-of-text token as the vector."""

    _target_: str = "urepa.models.text_encoders.clip_text.CLIPText"
    model: str = setting(
        "a local folder with tokenizer/ and text_encoder/, or a hub id, NAME@REVISION; its last part is recorded"
    )
    width: int = setting("width of a token: 768 of the one in SD-1.5", ge=1, le=SIZE)
    layer: int = setting("whose tokens, counted from the end: -1 is the last, with the final norm", ge=-SIZE, le=-1)
    length: int = setting("tokens of a caption, its first and last included; what is longer is cut", ge=3, le=SIZE)
    padding: Padding = setting("the positions behind a caption's end: attended, as SD-1.5 has them, or masked")
    null_text: NullText = setting(
        "what stands for no caption, for a backbone without a null of its own: the record of the empty prompt, or zeros"
    )

    @property
    def pooled_width(self) -> int:
        return self.width

    @property
    def is_attended(self) -> bool:
        """Do the positions behind a caption's end count?"""
        return str(self.padding) == "attended"

    def stored_as(self) -> str:
        return f"{self.name}_{-self.layer}_{self.length}" + ("_attended" if self.is_attended else "")

    def build(self) -> TextTransformer:
        from urepa.models.text_encoders.clip_text_net import clip_text

        return clip_text(self.model, self.layer, self.length, self.width, self.is_attended)

    def description(self) -> str:
        which = "last layer, after the final norm" if self.layer == -1 else f"layer {self.layer}, counted from the end"
        many = f"at most {number(self.length)}" if not self.is_attended else f"{number(self.length)}, padding included,"
        return (
            f"Captions are encoded by the text encoder of {self.name} (CLIP), frozen: the tokens of its "
            f"{which}, {many} of width {number(self.width)}, and the state of its end-of-text token as one vector."
        )
