"""The four text encoders of HiDream."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from urepa.core.declared_keys import SIZE, setting
from urepa.core.descriptions import number
from urepa.core.errors import UserError
from urepa.core.hub_names import is_hub_id
from urepa.core.text_protocols import NullText
from urepa.models.text_encoders.pipeline_sizes import SHORT, Floats, FromFolder, patterns, places, stored_name

if TYPE_CHECKING:
    from urepa.models.text_encoders.text_transformer_net import TextTransformer

LLAMA = "data.text_encoder.llama"


@dataclass
class HiDreamText(FromFolder):
    """The tokens of the last layer of T5's encoder, the stacked tokens of a Llama's layers, and the projected vectors
    of CLIP-L and OpenCLIP bigG. They equal HiDreamImagePipeline's prompt embeddings."""

    _target_: str = "urepa.models.text_encoders.hidream_text.HiDreamText"
    model: str = setting(
        "a local folder with tokenizer/, tokenizer_2/ and _3/, text_encoder/, text_encoder_2/ and _3/, or a hub id, "
        "NAME@REVISION; its last part is recorded"
    )
    llama: str = setting(
        "the same for the Llama, which is not in HiDream's repository: a folder with config.json, weights and tokenizer"
    )
    width: int = setting("width of T5's tokens: 4096", ge=1, le=SIZE)
    layers_width: int = setting("width of the Llama's tokens: 4096", ge=1, le=SIZE)
    pooled_width: int = setting("width of the vector, of both CLIPs together: 768 + 1280", ge=1, le=SIZE)
    layers: list[int] = setting(
        "the Llama's layers whose tokens are recorded, in this order, counted from 0: those in the backbone's "
        "llama_layers",
        ge=0,
        le=SIZE,
    )
    length: int = setting("tokens of a caption, for each of the four; longer captions are truncated", ge=3, le=SIZE)
    computed_in: Floats = setting("data type in which T5 and the Llama are loaded and computed; the CLIPs' is float32")
    null_text: NullText = setting("null condition: the record of the empty prompt, or zeros")

    @property
    def numbers(self) -> tuple[int, ...]:
        return (1, 2, 3)

    def check(self) -> None:
        if not self.layers or len(set(self.layers)) < len(self.layers) or min(self.layers) < 0:
            raise UserError(
                f"data.text_encoder.layers={list(self.layers)}: give different layers, counted from 0, as [0,1,2]"
            )

    def check_files(self) -> None:
        super().check_files()
        if not is_hub_id(self.llama):
            places(Path(self.llama), key=LLAMA)

    def hub_files(self) -> dict[str, list[str]]:
        own = {self.llama: patterns((1,))} if is_hub_id(self.llama) else {}
        return super().hub_files() | own

    def stored_as(self) -> str:
        kept = self.layers == list(range(len(self.layers)))
        layers = str(len(self.layers)) if kept else "-".join(map(str, self.layers))
        return f"{self.name}_{stored_name(self.llama)}_hidream_{layers}_{self.length}_{SHORT[str(self.computed_in)]}"

    def build(self) -> TextTransformer:
        from urepa.models.text_encoders.hidream_text_net import hidream_text

        widths = self.width, self.layers_width, self.pooled_width
        return hidream_text(self.model, self.llama, list(self.layers), self.length, widths, str(self.computed_in))

    def description(self) -> str:
        return (
            f"Captions are encoded by the text encoders of {self.name} (CLIP-L, OpenCLIP bigG and T5) and by "
            f"{stored_name(self.llama)}, frozen, T5 and the Llama in {self.computed_in}: T5's last tokens, "
            f"{number(self.length)} of width {number(self.width)}, the tokens of {number(len(self.layers))} layers of "
            f"the Llama, as many of width {number(self.layers_width)}, padding included, and the projected vectors of "
            f"both CLIPs, of width {number(self.pooled_width)}."
        )
