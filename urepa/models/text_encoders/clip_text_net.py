"""A CLIP text encoder. Code in the folder of the weights is never run.

Shapes: B texts, L positions, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from urepa.core.text_protocols import EncodedText
from urepa.models.text_encoders.pipeline_sizes import stored_name
from urepa.models.text_encoders.text_transformer_net import (
    Loaded,
    TextTransformer,
    Tower,
    check_layer,
    check_length,
    check_width,
    load_pair,
    network_without_weights,
    of_layer,
)

# CLIP ViT-L/14's text encoder, 123 M parameters: the differences from the defaults of CLIPTextConfig
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}


def clip_text(model: str, layer: int, length: int, width: int, is_attended: bool) -> TextTransformer:
    """The network from this folder or hub id. Its pooled vector is the hidden state [B,D] of the first end-of-text
    token, after the final norm."""
    name = stored_name(model)

    def load() -> Loaded:
        from transformers import CLIPTextModel, CLIPTokenizer

        return load_pair(model, (1,), 1, CLIPTokenizer, CLIPTextModel)

    def empty() -> Any:
        from transformers import CLIPTextModel

        return network_without_weights(model, 1, CLIPTextModel, CLIP_L)

    def check(configs: list[Any]) -> None:
        check_width(name, configs[0].hidden_size, width)
        check_length(name, configs[0].max_position_embeddings, length)
        check_layer(name, configs[0].num_hidden_layers, layer)

    def encode(network: Any, ids_BL: Tensor, mask_BL: Tensor) -> EncodedText:
        out = network(input_ids=ids_BL, attention_mask=None if is_attended else mask_BL, output_hidden_states=True)
        counts_BL = torch.ones_like(mask_BL, dtype=torch.bool) if is_attended else mask_BL.bool()
        return EncodedText(of_layer(out, layer), counts_BL, out.pooler_output)

    # stores without this entry have masked padding, which was once the only choice
    padding = {"padding": "attended"} if is_attended else {}
    facts = {"model": name, "layer": layer} | padding
    return TextTransformer(facts=facts, length=length, towers=[Tower(load, encode, empty)], check=check)
