"""The encoders of T5 and UMT5 from a pipeline's folder. Code in the folder is never run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from urepa.models.text_encoders.pipeline_sizes import T5Padding, stored_name
from urepa.models.text_encoders.text_transformer_net import (
    Encode,
    Loaded,
    TextTransformer,
    Tower,
    all_count,
    check_width,
    layer_tokens,
    load_pair,
    network_without_weights,
    one_more_counts,
    own_count,
)

# T5-XXL's encoder, 4.8 B parameters: the differences from the defaults of T5Config
T5_XXL = {"d_model": 4096, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "feed_forward_proj": "gated-gelu"}
# Pile-T5-XL's encoder, 1.2 B parameters: the differences from the defaults of UMT5Config
PILE_T5_XL = {
    "d_model": 2048,
    "d_ff": 5120,
    "num_layers": 24,
    "num_heads": 32,
    "vocab_size": 32128,
    "feed_forward_proj": "gated-silu",
}
COUNTS = {T5Padding.attended: all_count, T5Padding.masked: own_count, T5Padding.one_counts: one_more_counts}


def t5_tower(
    model: str, numbers: Sequence[int], number: int, computed_in: str, encode: Encode, length: int | None = None
) -> Tower:
    """One of a pipeline's text encoders, a T5."""

    def load() -> Loaded:
        from transformers import AutoTokenizer, T5EncoderModel

        return load_pair(model, numbers, number, AutoTokenizer, T5EncoderModel, computed_in)

    def empty() -> Any:
        from transformers import T5EncoderModel

        return network_without_weights(model, number, T5EncoderModel, T5_XXL, computed_in)

    return Tower(load, encode, empty, length)


def t5(
    model: str, number: int, length: int, width: int, padding: str, lowercase: bool, computed_in: str
) -> TextTransformer:
    """The network from this folder or hub id. Its positions are relative, so `length` has no upper limit."""
    encode = layer_tokens(-1, COUNTS[T5Padding(padding)], is_masked=padding != T5Padding.attended.value)
    facts = {"family": "t5", "padding": padding, "lowercase": lowercase}
    tower = t5_tower(model, (number,), number, computed_in, encode)
    return _alone(model, facts, tower, length, width, lowercase, computed_in)


def umt5(model: str, length: int, width: int, computed_in: str) -> TextTransformer:
    """The same for UMT5, with the tokenizer's mask."""

    def load() -> Loaded:
        from transformers import AutoTokenizer, UMT5EncoderModel

        return load_pair(model, (1,), 1, AutoTokenizer, UMT5EncoderModel, computed_in)

    def empty() -> Any:
        from transformers import UMT5EncoderModel

        return network_without_weights(model, 1, UMT5EncoderModel, PILE_T5_XL, computed_in)

    tower = Tower(load, layer_tokens(-1), empty)
    return _alone(model, {"family": "umt5"}, tower, length, width, False, computed_in)


def _alone(
    model: str, facts: dict[str, Any], tower: Tower, length: int, width: int, lowercase: bool, computed_in: str
) -> TextTransformer:
    name = stored_name(model)

    def check(configs: list[Any]) -> None:
        check_width(name, configs[0].d_model, width)

    return TextTransformer(
        facts={"model": name} | facts,
        length=length,
        towers=[tower],
        check=check,
        computed_in=computed_in,
        lowercase=lowercase,
    )
