"""Gemma 2 as SanaPipeline calls it, of a pipeline's folder. No code of it runs."""

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
    load_pair,
    masked_tokens,
    network_without_weights,
)

GEMMA_2_2B: dict[str, Any] = {}  # the defaults of Gemma2Config are its own: 2.6 B parameters


def gemma(model: str, layer: int, length: int, width: int, lowercase: bool, computed_in: str) -> TextTransformer:
    """The network of this folder or hub id. Captions stand at the beginning, before the padding, whatever its tokenizer
    says."""
    name = stored_name(model)

    def load() -> Loaded:
        from transformers import AutoTokenizer, Gemma2Model

        return load_pair(model, (1,), 1, AutoTokenizer, Gemma2Model, computed_in, padding_side="right")

    def empty() -> Any:
        from transformers import Gemma2Model

        return network_without_weights(model, 1, Gemma2Model, GEMMA_2_2B, computed_in)

    def check(configs: list[Any]) -> None:
        check_width(name, configs[0].hidden_size, width)
        check_length(name, configs[0].max_position_embeddings, length)
        check_layer(name, configs[0].num_hidden_layers, layer)

    return TextTransformer(
        facts={"model": name, "family": "gemma", "layer": layer, "lowercase": lowercase},
        length=length,
        towers=[Tower(load, masked_tokens(layer), empty)],
        check=check,
        computed_in=computed_in,
        lowercase=lowercase,
    )
