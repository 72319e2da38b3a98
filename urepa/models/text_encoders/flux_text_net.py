"""The two text encoders of Flux, called as in FluxPipeline.encode_prompt. Code in the folder is never run.

Shapes: B texts, L positions.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from urepa.core.text_protocols import EncodedText
from urepa.models.text_encoders.clip_text_net import CLIP_L
from urepa.models.text_encoders.pipeline_sizes import stored_name
from urepa.models.text_encoders.t5_net import t5_tower
from urepa.models.text_encoders.text_transformer_net import (
    Loaded,
    TextTransformer,
    Tower,
    all_count,
    check_length,
    check_width,
    layer_tokens,
    load_pair,
    network_without_weights,
    vector_alone,
)

BOTH = (1, 2)  # the numbers of the pipeline's text encoders


def flux_text(model: str, lengths: tuple[int, int], width: int, pooled_width: int, computed_in: str) -> TextTransformer:
    """The networks from this folder or hub id. `lengths` are the positions of CLIP and of T5."""
    name, (clip_length, length) = stored_name(model), lengths

    def load_clip() -> Loaded:
        from transformers import CLIPTextModel, CLIPTokenizer

        return load_pair(model, BOTH, 1, CLIPTokenizer, CLIPTextModel)

    def empty_clip() -> Any:
        from transformers import CLIPTextModel

        return network_without_weights(model, 1, CLIPTextModel, CLIP_L)

    def check(configs: list[Any]) -> None:
        check_width(name, configs[0].hidden_size, pooled_width, "pooled_width")
        check_length(name, configs[0].max_position_embeddings, clip_length, "clip_length")
        check_width(name, configs[1].d_model, width)

    t5 = t5_tower(model, BOTH, 2, computed_in, layer_tokens(-1, all_count, is_masked=False))
    return TextTransformer(
        facts={"model": name, "family": "flux", "clip_length": clip_length},
        length=length,
        towers=[Tower(load_clip, encode_clip, empty_clip, clip_length), t5],
        check=check,
        computed_in=computed_in,
        join=join,
        counted=[1],
    )


def encode_clip(network: Any, ids_BL: Tensor, mask_BL: Tensor) -> EncodedText:
    """The state of the end-of-text token, after the final norm."""
    return vector_alone(network(input_ids=ids_BL).pooler_output, mask_BL)


def join(found: list[EncodedText]) -> EncodedText:
    """T5's tokens and CLIP's vector."""
    clip, t5 = found
    return EncodedText(t5.tokens_BLD, t5.mask_BL, clip.pooled_BP)
