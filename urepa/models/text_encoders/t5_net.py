"""The encoders of T5 and UMT5 from a pipeline's folder. Code in the folder is never run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    one_more_counts,
    own_count,
)

COUNTS = {T5Padding.attended: all_count, T5Padding.masked: own_count, T5Padding.one_counts: one_more_counts}


def load_t5(model: str, numbers: Sequence[int], number: int, computed_in: str) -> Callable[[], Loaded]:
    """A function that loads one of a pipeline's text encoders, a T5."""

    def load() -> Loaded:
        from transformers import AutoTokenizer, T5EncoderModel

        return load_pair(model, numbers, number, AutoTokenizer, T5EncoderModel, computed_in)

    return load


def t5(
    model: str, number: int, length: int, width: int, padding: str, lowercase: bool, computed_in: str
) -> TextTransformer:
    """The network from this folder or hub id. Its positions are relative, so `length` has no upper limit."""
    encode = layer_tokens(-1, COUNTS[T5Padding(padding)], is_masked=padding != T5Padding.attended.value)
    facts = {"family": "t5", "padding": padding, "lowercase": lowercase}
    load = load_t5(model, (number,), number, computed_in)
    return _alone(model, facts, load, encode, length, width, lowercase, computed_in)


def umt5(model: str, length: int, width: int, computed_in: str) -> TextTransformer:
    """The same for UMT5, with the tokenizer's mask."""

    def load() -> Loaded:
        from transformers import AutoTokenizer, UMT5EncoderModel

        return load_pair(model, (1,), 1, AutoTokenizer, UMT5EncoderModel, computed_in)

    return _alone(model, {"family": "umt5"}, load, layer_tokens(-1), length, width, False, computed_in)


def _alone(
    model: str,
    facts: dict[str, Any],
    load: Callable[[], Loaded],
    encode: Encode,
    length: int,
    width: int,
    lowercase: bool,
    computed_in: str,
) -> TextTransformer:
    name = stored_name(model)

    def check(configs: list[Any]) -> None:
        check_width(name, configs[0].d_model, width)

    return TextTransformer(
        facts={"model": name} | facts,
        length=length,
        towers=[Tower(load, encode)],
        check=check,
        computed_in=computed_in,
        lowercase=lowercase,
    )
