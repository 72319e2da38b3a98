"""The two text encoders of SDXL, as StableDiffusionXLPipeline.encode_prompt calls them. No code of their folder runs.

Shapes: B texts, L positions, D width of one of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from urepa.core.text_protocols import EncodedText
from urepa.models.text_encoders.clip_text_net import CLIP_L
from urepa.models.text_encoders.pipeline_sizes import stored_name
from urepa.models.text_encoders.text_transformer_net import (
    Loaded,
    TextTransformer,
    Tower,
    check_length,
    check_width,
    load_pair,
    network_without_weights,
    without_vector,
)

BOTH = (1, 2)  # of a pipeline's text encoders
# OpenCLIP ViT-bigG/14's text encoder, 695 M parameters, as far as it differs from the defaults of CLIPTextConfig
BIG_G = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
}


def sdxl_text(model: str, length: int, width: int, pooled_width: int) -> TextTransformer:
    """The networks of this folder or hub id."""
    name = stored_name(model)

    def load_first() -> Loaded:
        from transformers import CLIPTextModel, CLIPTokenizer

        return load_pair(model, BOTH, 1, CLIPTokenizer, CLIPTextModel)

    def load_second() -> Loaded:
        from transformers import CLIPTextModelWithProjection, CLIPTokenizer

        return load_pair(model, BOTH, 2, CLIPTokenizer, CLIPTextModelWithProjection)

    def empty_first() -> Any:
        from transformers import CLIPTextModel

        return network_without_weights(model, 1, CLIPTextModel, CLIP_L)

    def empty_second() -> Any:
        from transformers import CLIPTextModelWithProjection

        return network_without_weights(model, 2, CLIPTextModelWithProjection, BIG_G)

    def check(configs: list[Any]) -> None:
        check_width(name, sum(config.hidden_size for config in configs), width)
        check_width(name, configs[1].projection_dim, pooled_width, "pooled_width")
        check_length(name, min(config.max_position_embeddings for config in configs), length)

    return TextTransformer(
        facts={"model": name, "joined": "last layers but one of two encoders"},
        length=length,
        towers=[Tower(load_first, encode_first, empty_first), Tower(load_second, encode_second, empty_second)],
        check=check,
    )


def encode_first(network: Any, ids_BL: Tensor, mask_BL: Tensor) -> EncodedText:
    """Tokens of the last layer but one; all positions count."""
    tokens_BLD = network(input_ids=ids_BL, output_hidden_states=True).hidden_states[-2]
    return EncodedText(tokens_BLD, torch.ones_like(mask_BL, dtype=torch.bool), without_vector(tokens_BLD))


def encode_second(network: Any, ids_BL: Tensor, mask_BL: Tensor) -> EncodedText:
    """The same, and the projected state of the end-of-text token."""
    out = network(input_ids=ids_BL, output_hidden_states=True)
    return EncodedText(out.hidden_states[-2], torch.ones_like(mask_BL, dtype=torch.bool), out.text_embeds)
