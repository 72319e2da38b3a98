"""Flux2Transformer2DModel as a backbone.

Shapes: B batch, C channels, H/W latent, N = H·W image tokens, L text positions, D width.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from urepa.core.conditions import Condition
from urepa.core.part_names import TEXT
from urepa.models.backbones.diffusers_transformer_net import PREFIX
from urepa.models.backbones.two_streams_net import TwoStreams

AXES = 4  # coordinates of a position: time, row, column, index in the text


class Flux2Network(TwoStreams):
    """A token is one latent pixel: latents are stored packed, with 2x2 of the VAE's latent pixels in its channels.
    As in the pipeline, attention has no mask: all text tokens take part in it, padding included.

    Args:
        guidance: the scale that a distilled model embeds; None for a model without a guidance embedding.
    """

    regions: ClassVar[tuple[str, ...]] = ("Flux2TransformerBlock", "Flux2SingleTransformerBlock")
    adapter_files: ClassVar[str | None] = "Flux2LoraLoaderMixin"

    def __init__(self, transformer: Any, guidance: float | None) -> None:
        super().__init__(transformer)
        self.guidance = guidance

    def lora_modules(self, targets: str, blocks: str) -> str:
        """In single-stream blocks, attention and MLP share one input layer and one output layer; both are adapted."""
        single = r"single_transformer_blocks\.\d+\.attn\.(?:to_qkv_mlp_proj|to_out)"
        return f"{super().lora_modules(targets, blocks)}|{single}"

    def place_of(self, name: str) -> int:
        if name.removeprefix(PREFIX).startswith("single_stream_modulation."):  # used by these blocks only
            return len(self.transformer.transformer_blocks)
        return super().place_of(name)

    def arguments(self, x_t: Tensor, t_B: Tensor, condition: Condition) -> dict[str, Any]:
        text_BLD = condition[TEXT].tokens_BLD
        guidance_B = None if self.guidance is None else torch.full((len(x_t),), self.guidance, device=x_t.device)
        return {
            "hidden_states": x_t.flatten(2).mT,
            "timestep": t_B,
            "guidance": guidance_B,
            "encoder_hidden_states": text_BLD,
            "txt_ids": text_positions(text_BLD.shape[1], x_t.device),
            "img_ids": image_positions(self.grid_of(x_t), x_t.device),
        }

    def prediction(self, out: Tensor, x_t: Tensor) -> Tensor:
        return out.mT.unflatten(2, self.grid_of(x_t))


def text_positions(length: int, device: torch.device) -> Tensor:
    """The positions [L,4] of text tokens: 0, 0, 0 and the index in the text."""
    ids = torch.zeros(length, AXES, device=device)
    ids[:, 3] = torch.arange(length, device=device)
    return ids


def image_positions(grid: tuple[int, int], device: torch.device) -> Tensor:
    """The positions [N,4] of image tokens: 0, the row, the column and 0."""
    height, width = grid
    ids = torch.zeros(height, width, AXES, device=device)
    ids[..., 1] = torch.arange(height, device=device)[:, None]
    ids[..., 2] = torch.arange(width, device=device)[None]
    return ids.flatten(0, 1)
