"""T5's encoder from a pipeline's folder. Code in the folder is never run."""

from __future__ import annotations

from typing import Any

from urepa.models.text_encoders.pipeline_sizes import stored_name
from urepa.models.text_encoders.text_transformer_net import (
    Loaded,
    TextTransformer,
    Tower,
    check_width,
    load_pair,
    masked_tokens,
)


def t5(
    model: str, number: int, length: int, width: int, is_attended: bool, lowercase: bool, computed_in: str
) -> TextTransformer:
    """The network from this folder or hub id. Its positions are relative, so `length` has no upper limit."""
    name = stored_name(model)

    def load() -> Loaded:
        from transformers import AutoTokenizer, T5EncoderModel

        return load_pair(model, (number,), number, AutoTokenizer, T5EncoderModel, computed_in)

    def check(configs: list[Any]) -> None:
        check_width(name, configs[0].d_model, width)

    return TextTransformer(
        facts={
            "model": name,
            "family": "t5",
            "padding": "attended" if is_attended else "masked",
            "lowercase": lowercase,
        },
        length=length,
        towers=[Tower(load, masked_tokens(-1, not is_attended))],
        check=check,
        computed_in=computed_in,
        lowercase=lowercase,
    )
