"""ChatGLM3, the text encoder of Kolors."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from urepa.core.declared_keys import SIZE, setting
from urepa.core.descriptions import number
from urepa.core.errors import UserError
from urepa.core.text_protocols import NullText
from urepa.models.text_encoders.pipeline_sizes import SHORT, Floats, FromFolder

if TYPE_CHECKING:
    from urepa.models.text_encoders.text_transformer_net import TextTransformer


@dataclass
class ChatGLM(FromFolder):
    """The tokens of ChatGLM3-6B's second-to-last layer, and the last token of its last layer as the vector, as computed
    by KolorsPipeline."""

    _target_: str = "urepa.models.text_encoders.chatglm.ChatGLM"
    model: str = setting(
        "a local folder with tokenizer/ and text_encoder/, or a hub id, NAME@REVISION; its last part is recorded"
    )
    width: int = setting("width of a token and of the vector", ge=1, le=SIZE)
    length: int = setting(
        "tokens of a caption, with its first two special ones; longer captions are truncated", ge=3, le=SIZE
    )
    computed_in: Floats = setting("data type in which the network is loaded and computed")
    null_text: NullText = setting("null condition: the record of the empty prompt, or zeros")

    @property
    def pooled_width(self) -> int:
        return self.width

    def check_files(self) -> None:
        super().check_files()
        if find_spec("sentencepiece") is None:
            raise UserError("text_encoder=kolors needs a package for its tokenizer: run `pip install sentencepiece`")

    def stored_as(self) -> str:
        return f"{self.name}_chatglm_{self.length}_{SHORT[str(self.computed_in)]}"

    def build(self) -> TextTransformer:
        from urepa.models.text_encoders.chatglm_net import chatglm

        return chatglm(self.model, self.length, self.width, str(self.computed_in))

    def description(self) -> str:
        return (
            f"Captions are encoded by the ChatGLM of {self.name}, frozen, in {self.computed_in}: the tokens of its "
            f"second-to-last layer, {number(self.length)} of width {number(self.width)}, padding included, and the "
            "last token of its last layer as one vector."
        )
