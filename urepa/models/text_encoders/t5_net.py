"""T5's encoder, of a pipeline's folder. No code of it runs."""

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
    network_without_weights,
)

# T5-XXL's encoder, 4.8 B parameters, as far as it differs from the defaults of T5Config
T5_XXL = {"d_model": 4096, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "feed_forward_proj": "gated-gelu"}


def t5(
    model: str, number: int, length: int, width: int, is_attended: bool, lowercase: bool, computed_in: str
) -> TextTransformer:
    """The network of this folder or hub id; its positions are relative, so that there are as many as are asked for."""
    name = stored_name(model)

    def load() -> Loaded:
        from transformers import AutoTokenizer, T5EncoderModel

        return load_pair(model, (number,), number, AutoTokenizer, T5EncoderModel, computed_in)

    def empty() -> Any:
        from transformers import T5EncoderModel

        return network_without_weights(model, number, T5EncoderModel, T5_XXL, computed_in)

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
        towers=[Tower(load, masked_tokens(-1, not is_attended), empty)],
        check=check,
        computed_in=computed_in,
        lowercase=lowercase,
    )
