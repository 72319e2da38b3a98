"""The text encoder of a CLIP in a local folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from urepa.core.declared_keys import SIZE, setting
from urepa.core.descriptions import number
from urepa.models.text_encoders.clip_sizes import places

if TYPE_CHECKING:
    from urepa.models.text_encoders.text_transformer_net import TextTransformer


@dataclass
class CLIPText:
    """The tokens of a layer of a CLIP's text encoder, and the state of its end-of-text token as the vector."""

    _target_: str = "urepa.models.text_encoders.clip_text.CLIPText"
    model: str = setting("a local folder with tokenizer/ and text_encoder/; its last part is recorded")
    width: int = setting("width of a token: 768 of the one in SD-1.5", ge=1, le=SIZE)
    layer: int = setting("whose tokens, counted from the end: -1 is the last, with the final norm", ge=-SIZE, le=-1)
    length: int = setting("tokens of a caption, its first and last included; what is longer is cut", ge=3, le=SIZE)

    @property
    def pooled_width(self) -> int:
        return self.width

    def check(self) -> None:
        """Whether the network has them is known when it is read."""

    def check_files(self) -> None:
        places(Path(self.model))

    def stored_as(self) -> str:
        return f"{Path(self.model).resolve().name}_{-self.layer}_{self.length}"

    def build(self) -> TextTransformer:
        from urepa.models.text_encoders.clip_text_net import clip_text

        return clip_text(Path(self.model), self.layer, self.length, self.width)

    def description(self) -> str:
        which = "last layer, after the final norm" if self.layer == -1 else f"layer {self.layer}, counted from the end"
        return (
            f"Captions are encoded by the text encoder of {Path(self.model).name} (CLIP), frozen: the tokens of its "
            f"{which}, at most {number(self.length)} of width {number(self.width)}, and the state of its end-of-text "
            "token as one vector."
        )
