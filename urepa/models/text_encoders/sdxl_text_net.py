"""The two text encoders of SDXL, called as in StableDiffusionXLPipeline.encode_prompt. Code in the folder of the
weights is never run.

Shapes: B texts, L positions, D width of one encoder.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from urepa.core.text_protocols import EncodedText
from urepa.models.text_encoders.clip_text_net import CLIP_L
from urepa.models.text_encoders.pipeline_sizes import stored_name
from urepa.models.text_encoders.text_transformer_net import (
    Loaded,
    TextTransformer,
    Tower,
    all_count,
    check_length,
    check_width,
    load_pair,
    network_without_weights,
    without_vector,
)

BOTH = (1, 2)  # the numbers of the pipeline's text encoders
# OpenCLIP ViT-bigG/14's text encoder, 695 M parameters: the differences from the defaults of CLIPTextConfig
BIG_G = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
}


def sdxl_text(model: str, length: int, width: int, pooled_width: int) -> TextTransformer:
    """The networks from this folder or hub id."""
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
    """The tokens of the second-to-last layer; the mask includes all positions."""
    tokens_BLD = network(input_ids=ids_BL, output_hidden_states=True).hidden_states[-2]
    return EncodedText(tokens_BLD, all_count(mask_BL), without_vector(tokens_BLD))


def encode_second(network: Any, ids_BL: Tensor, mask_BL: Tensor) -> EncodedText:
    """As `encode_first`, with the projected hidden state of the end-of-text token as the vector."""
    out = network(input_ids=ids_BL, output_hidden_states=True)
    return EncodedText(out.hidden_states[-2], all_count(mask_BL), out.text_embeds)
