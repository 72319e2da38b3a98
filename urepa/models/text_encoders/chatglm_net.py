"""ChatGLM3 called as in KolorsPipeline.encode_prompt. Network and tokenizer are diffusers' own classes; code in the
folder of the weights is never run.

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
    check_length,
    check_width,
    load_pair,
    network_without_weights,
)

# ChatGLM3-6B, 6.2 B parameters: the differences from the defaults of diffusers' ChatGLMConfig
CHATGLM3_6B = {
    "add_qkv_bias": True,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "original_rope": True,
}


def chatglm(model: str, length: int, width: int, computed_in: str) -> TextTransformer:
    """The network from this folder or hub id."""
    name = stored_name(model)

    def load() -> Loaded:
        from diffusers.pipelines.kolors.text_encoder import ChatGLMModel
        from diffusers.pipelines.kolors.tokenizer import ChatGLMTokenizer

        return load_pair(model, (1,), 1, ChatGLMTokenizer, ChatGLMModel, computed_in)

    def empty() -> Any:
        from diffusers.pipelines.kolors.text_encoder import ChatGLMModel

        return network_without_weights(model, 1, ChatGLMModel, CHATGLM3_6B, computed_in, empty_init=False)

    def check(configs: list[Any]) -> None:
        check_width(name, configs[0].hidden_size, width)
        check_length(name, configs[0].seq_length, length)

    return TextTransformer(
        facts={"model": name, "family": "chatglm"},
        length=length,
        towers=[Tower(load, encode, empty)],
        check=check,
        computed_in=computed_in,
    )


def encode(network: Any, ids_BL: Tensor, mask_BL: Tensor) -> EncodedText:
    """The padding precedes a caption's tokens; positions are counted from its first token. The mask includes all
    tokens."""
    positions_BL = (mask_BL.cumsum(1) - 1).clamp(min=0)
    out = network(input_ids=ids_BL, attention_mask=mask_BL, position_ids=positions_BL, output_hidden_states=True)
    tokens_LBD, last_LBD = out.hidden_states[-2], out.hidden_states[-1]
    return EncodedText(tokens_LBD.transpose(0, 1), torch.ones_like(mask_BL, dtype=torch.bool), last_LBD[-1])
