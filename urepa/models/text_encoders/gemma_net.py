"""Gemma 2 from a pipeline's folder, called as in SanaPipeline or Lumina2Pipeline. Code in the folder is never run."""

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
    network_without_weights,
)

GEMMA_2_2B: dict[str, Any] = {}  # 2.6 B parameters: the defaults of Gemma2Config


def gemma(
    model: str, layer: int, length: int, width: int, lowercase: bool, before: str | None, computed_in: str
) -> TextTransformer:
    """The network from this folder or hub id. The padding follows a caption's tokens, whatever side the tokenizer's
    config has. `before` is put before every caption that is not empty."""
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

    def put_before(tokenizer: Any, texts: list[str]) -> list[str]:
        return [f"{before}{text}" if text else text for text in texts]

    told = {} if before is None else {"before": before}  # stores of earlier versions do not have it
    return TextTransformer(
        facts={"model": name, "family": "gemma", "layer": layer, "lowercase": lowercase} | told,
        length=length,
        towers=[Tower(load, layer_tokens(layer), empty, prepare=None if before is None else put_before)],
        check=check,
        computed_in=computed_in,
        lowercase=lowercase,
    )
