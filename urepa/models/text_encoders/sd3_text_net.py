"""The three text encoders of SD3, called as in StableDiffusion3Pipeline.encode_prompt. Code in the folder is never run.

Shapes: B texts, L positions, C positions of the CLIPs, D width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from urepa.core.errors import UserError
from urepa.core.text_protocols import EncodedText
from urepa.models.text_encoders.clip_text_net import CLIP_L
from urepa.models.text_encoders.pipeline_sizes import stored_name
from urepa.models.text_encoders.sdxl_text_net import BIG_G, encode_second
from urepa.models.text_encoders.t5_net import t5_tower
from urepa.models.text_encoders.text_transformer_net import (
    Encode,
    Loaded,
    TextTransformer,
    Tower,
    all_count,
    check_length,
    check_width,
    join_widths,
    layer_tokens,
    load_pair,
    network_without_weights,
)

ALL = (1, 2, 3)  # the numbers of the pipeline's text encoders
PROJECTED = {1: CLIP_L | {"projection_dim": 768}, 2: BIG_G}  # the published CLIPs by their numbers


def projected_clip_tower(
    model: str, numbers: tuple[int, ...], number: int, encode: Encode, length: int | None = None
) -> Tower:
    """One of a pipeline's text encoders, a CLIP with its projection."""

    def load() -> Loaded:
        from transformers import CLIPTextModelWithProjection, CLIPTokenizer

        return load_pair(model, numbers, number, CLIPTokenizer, CLIPTextModelWithProjection)

    def empty() -> Any:
        from transformers import CLIPTextModelWithProjection

        return network_without_weights(model, number, CLIPTextModelWithProjection, PROJECTED[number])

    return Tower(load, encode, empty, length)


def sd3_text(model: str, lengths: tuple[int, int], width: int, pooled_width: int, computed_in: str) -> TextTransformer:
    """The networks from this folder or hub id. `lengths` are the positions of the CLIPs and of T5."""
    name, (clip_length, t5_length) = stored_name(model), lengths
    clips = [projected_clip_tower(model, ALL, i, encode_second, clip_length) for i in (1, 2)]
    t5 = t5_tower(model, ALL, 3, computed_in, layer_tokens(-1, all_count, is_masked=False), t5_length)

    def check(configs: list[Any]) -> None:
        check_width(name, configs[2].d_model, width)
        check_projections(name, configs[:2], clip_length, pooled_width)
        joined = configs[0].hidden_size + configs[1].hidden_size
        if joined > width:
            raise UserError(
                f"the CLIPs of {name} have tokens of width {joined} together, more than the {width} of its T5; give "
                "the text encoders of an SD3"
            )

    return TextTransformer(
        facts={"model": name, "family": "sd3", "clip_length": clip_length, "t5_length": t5_length},
        length=clip_length + t5_length,
        towers=[*clips, t5],
        check=check,
        computed_in=computed_in,
        join=join,
        counted=[2],
    )


def check_projections(name: str, configs: list[Any], length: int, pooled_width: int, key: str = "clip_length") -> None:
    """Raises UserError if the joined width of the CLIPs' vectors or their number of positions does not fit the
    settings."""
    check_width(name, sum(config.projection_dim for config in configs), pooled_width, "pooled_width")
    check_length(name, min(config.max_position_embeddings for config in configs), length, key)


def join(found: list[EncodedText]) -> EncodedText:
    """The CLIPs' tokens, concatenated along their width and padded with zeros, [B,C,D], then T5's [B,L-C,D]."""
    clips, t5 = join_widths(found[:2]), found[2]
    missing = t5.tokens_BLD.shape[2] - clips.tokens_BLD.shape[2]
    tokens_BLD = torch.cat([F.pad(clips.tokens_BLD, (0, missing)), t5.tokens_BLD], dim=1)
    return EncodedText(tokens_BLD, torch.cat([clips.mask_BL, t5.mask_BL], dim=1), clips.pooled_BP)
