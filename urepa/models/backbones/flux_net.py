"""FluxTransformer2DModel as a backbone.

Shapes: B batch, C channels, H/W latent, h/w = H/2, W/2 grid of image tokens, N = h·w of them, D width, L text
positions.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from urepa.core.conditions import Condition
from urepa.core.part_names import POOLED, TEXT
from urepa.models.backbones.diffusers_transformer_net import DiffusersTransformer, Pass

SIDE = 2  # latent pixels of a side of an image token
AXES = 3  # of a position: text's, row, column


class FluxNetwork(DiffusersTransformer):
    """Its pipeline passes no mask: all tokens of a text count, padding too.

    Args:
        guidance: the scale that a distilled model embeds; None of one that embeds none.
    """

    regions: ClassVar[tuple[str, ...]] = ("FluxTransformerBlock", "FluxSingleTransformerBlock")
    lists: ClassVar[tuple[str, ...]] = ("transformer_blocks", "single_transformer_blocks")
    text_alone: ClassVar[str] = r"\.(?:attn\.to_add_out|ff_context)\."
    adapted: ClassVar[str] = DiffusersTransformer.adapted + "|add_q_proj|add_k_proj|add_v_proj|to_add_out"
    adapter_files: ClassVar[str | None] = "FluxLoraLoaderMixin"

    def __init__(self, transformer: Any, guidance: float | None) -> None:
        super().__init__(transformer)
        self.guidance = guidance

    @staticmethod
    def widths_of(config: Any) -> dict[str, int]:
        return {TEXT: config.joint_attention_dim, POOLED: config.pooled_projection_dim}

    @staticmethod
    def channels_of(config: Any) -> int:
        return int(config.in_channels) // SIDE**2

    def arguments(self, x_t: Tensor, t_B: Tensor, condition: Condition) -> dict[str, Any]:
        text_BLD = condition[TEXT].tokens_BLD
        guidance_B = None if self.guidance is None else torch.full((len(x_t),), self.guidance, device=x_t.device)
        return {
            "hidden_states": packed(x_t),
            "timestep": t_B,
            "guidance": guidance_B,
            "encoder_hidden_states": text_BLD,
            "pooled_projections": condition[POOLED].vector_BD,
            "txt_ids": torch.zeros(text_BLD.shape[1], AXES, device=x_t.device),
            "img_ids": positions(self.grid_of(x_t), x_t.device),
        }

    def grid_of(self, x_t: Tensor) -> tuple[int, int]:
        return x_t.shape[2] // SIDE, x_t.shape[3] // SIDE

    def image_tokens(self, index: int, output: Any, current: Pass) -> Tensor:
        tokens_BND: Tensor = output[1]
        return tokens_BND

    def with_tokens(self, index: int, output: Any, tokens_BND: Tensor, current: Pass) -> Any:
        return output[0], tokens_BND

    def prediction(self, out: Tensor, x_t: Tensor) -> Tensor:
        return unpacked(out, self.grid_of(x_t))


def packed(x_BCHW: Tensor) -> Tensor:
    """Tokens [B,N,4C] of 2x2 latent pixels, row by row, channels first in each."""
    patches = x_BCHW.unflatten(3, (-1, SIDE)).unflatten(2, (-1, SIDE))  # B, C, h, 2, w, 2
    return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpacked(tokens_BNO: Tensor, grid: tuple[int, int]) -> Tensor:
    """The same as latents [B,C,H,W]."""
    patches = tokens_BNO.unflatten(2, (-1, SIDE, SIDE)).unflatten(1, grid)  # B, h, w, C, 2, 2
    return patches.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def positions(grid: tuple[int, int], device: torch.device) -> Tensor:
    """[N,3]: 0, the row and the column of each image token."""
    height, width = grid
    ids = torch.zeros(height, width, AXES, device=device)
    ids[..., 1] = torch.arange(height, device=device)[:, None]
    ids[..., 2] = torch.arange(width, device=device)[None]
    return ids.flatten(0, 1)
