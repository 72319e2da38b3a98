"""A CLIP text encoder."""

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
    """The tokens of one layer of a CLIP text encoder, and the hidden state of its end-of-text token as the vector."""

    _target_: str = "urepa.models.text_encoders.clip_text.CLIPText"
    model: str = setting(
        "a local folder with tokenizer/ and text_encoder/, or a hub id, NAME@REVISION; its last part is recorded"
    )
    width: int = setting("width of a token: 768 in SD-1.5", ge=1, le=SIZE)
    layer: int = setting(
        "layer of the tokens, counted from the end: -1 is the last, with the final norm", ge=-SIZE, le=-1
    )
    length: int = setting(
        "tokens of a caption, with start and end tokens; longer captions are truncated", ge=3, le=SIZE
    )
    padding: Padding = setting("padding after a caption's end: attended, as in SD-1.5, or masked")
    null_text: NullText = setting(
        "null condition, for a backbone that has none of its own: the record of the empty prompt, or zeros"
    )

    @property
    def pooled_width(self) -> int:
        return self.width

    @property
    def is_attended(self) -> bool:
        """Whether the mask includes the padding after a caption's end."""
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
