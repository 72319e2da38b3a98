"""Gemma 2 as SanaPipeline and Lumina2Pipeline call it, of a pipeline's folder. No code of it runs."""

from __future__ import annotations

from typing import Any

from urepa.models.text_encoders.pipeline_sizes import stored_name
from urepa.models.text_encoders.text_transformer_net import (
    Loaded,
    TextTransformer,
    Tower,
    check_layer,
    check_length,
    check_width,
    layer_tokens,
    load_pair,
)


def gemma(
    model: str, layer: int, length: int, width: int, lowercase: bool, before: str | None, computed_in: str
) -> TextTransformer:
    """The network of this folder or hub id. Captions stand at the beginning, before the padding, whatever its tokenizer
    says. `before`: what is put before those that are not empty."""
    name = stored_name(model)

    def load() -> Loaded:
        from transformers import AutoTokenizer, Gemma2Model

        return load_pair(model, (1,), 1, AutoTokenizer, Gemma2Model, computed_in, padding_side="right")

    def check(configs: list[Any]) -> None:
        check_width(name, configs[0].hidden_size, width)
        check_length(name, configs[0].max_position_embeddings, length)
        check_layer(name, configs[0].num_hidden_layers, layer)

    def put_before(tokenizer: Any, texts: list[str]) -> list[str]:
        return [f"{before}{text}" if text else text for text in texts]

    told = {} if before is None else {"before": before}  # stores of earlier versions do not say it
    return TextTransformer(
        facts={"model": name, "family": "gemma", "layer": layer, "lowercase": lowercase} | told,
        length=length,
        towers=[Tower(load, layer_tokens(layer), prepare=None if before is None else put_before)],
        check=check,
        computed_in=computed_in,
        lowercase=lowercase,
    )
