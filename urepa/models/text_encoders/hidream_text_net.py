"""The four text encoders of HiDream, called as in HiDreamImagePipeline.encode_prompt. Code in the folders is never run.

Shapes: B texts, L positions, S stacked layers, E width of their tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from urepa.core.errors import UserError
from urepa.core.text_protocols import EncodedText
from urepa.models.text_encoders.hidream_text import LLAMA
from urepa.models.text_encoders.pipeline_sizes import stored_name
from urepa.models.text_encoders.sd3_text_net import ALL, check_projections, projected_clip_tower
from urepa.models.text_encoders.t5_net import t5_tower
from urepa.models.text_encoders.text_transformer_net import (
    Encode,
    Loaded,
    TextTransformer,
    Tower,
    all_count,
    check_length,
    check_width,
    join_vectors,
    layer_tokens,
    load_pair,
    network_without_weights,
    vector_alone,
)

# Llama 3.1 8B, 8.0 B parameters: the differences from the defaults of LlamaConfig
LLAMA_31_8B = {"vocab_size": 128256, "intermediate_size": 14336, "num_key_value_heads": 8}


def hidream_text(
    model: str, llama: str, layers: list[int], length: int, widths: tuple[int, int, int], computed_in: str
) -> TextTransformer:
    """The networks from these folders or hub ids. `widths`: T5's tokens, the Llama's tokens, the vector."""
    name, (width, layers_width, pooled_width) = stored_name(model), widths

    def load_llama() -> Loaded:
        from transformers import AutoTokenizer, LlamaForCausalLM

        tokenizer, network = load_pair(llama, (1,), 1, AutoTokenizer, LlamaForCausalLM, computed_in, key=LLAMA)
        tokenizer.pad_token = tokenizer.eos_token  # as in the pipeline
        return tokenizer, network

    def empty_llama() -> Any:
        from transformers import LlamaForCausalLM

        return network_without_weights(llama, 1, LlamaForCausalLM, LLAMA_31_8B, computed_in)

    def check(configs: list[Any]) -> None:
        check_width(name, configs[2].d_model, width)
        check_projections(name, configs[:2], length, pooled_width, "length")
        of_llama, own = stored_name(llama), configs[3]
        check_width(of_llama, own.hidden_size, layers_width, "layers_width")
        check_length(of_llama, own.max_position_embeddings, length)
        if max(layers) >= own.num_hidden_layers:
            raise UserError(
                f"data.text_encoder.layers={layers}: {of_llama} has {own.num_hidden_layers} layers; give 0 to "
                f"{own.num_hidden_layers - 1}"
            )

    clips = [projected_clip_tower(model, ALL, i, encode_clip) for i in (1, 2)]
    t5 = t5_tower(model, ALL, 3, computed_in, layer_tokens(-1, all_count))
    return TextTransformer(
        facts={"model": name, "family": "hidream", "llama": stored_name(llama), "layers": layers},
        length=length,
        towers=[*clips, t5, Tower(load_llama, encode_layers(layers), empty_llama)],
        check=check,
        computed_in=computed_in,
        join=join,
        counted=[2, 3],
    )


def encode_clip(network: Any, ids_BL: Tensor, mask_BL: Tensor) -> EncodedText:
    """The projected state of the end-of-text token."""
    return vector_alone(network(input_ids=ids_BL).text_embeds, mask_BL)


def encode_layers(layers: list[int]) -> Encode:
    """A function that returns the outputs of these layers, the last one's after the final norm. Logits are not
    computed."""

    def encode(network: Any, ids_BL: Tensor, mask_BL: Tensor) -> EncodedText:
        out = network.model(input_ids=ids_BL, attention_mask=mask_BL, output_hidden_states=True, use_cache=False)
        layers_BSLE = torch.stack([out.hidden_states[1 + layer] for layer in layers], dim=1)
        nothing = vector_alone(layers_BSLE.new_zeros(len(ids_BL), 0), mask_BL)
        return EncodedText(nothing.tokens_BLD, nothing.mask_BL, nothing.pooled_BP, layers_BSLE)

    return encode


def join(found: list[EncodedText]) -> EncodedText:
    """T5's tokens, the CLIPs' vectors and the Llama's layers. The mask includes all positions."""
    t5, llama = found[2:]
    return EncodedText(t5.tokens_BLD, t5.mask_BL, join_vectors(found[:2]), llama.layers_BSLE)
