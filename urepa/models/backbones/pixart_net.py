"""PixArtTransformer2DModel as a backbone.

Shapes: B batch, C channels, H/W latent, N image tokens, D width, L text positions.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from urepa.core.conditions import Condition
from urepa.core.part_names import TEXT
from urepa.models.backbones.diffusers_transformer_net import DiffusersTransformer, Pass

VAE_FACTOR = 8  # side of a latent pixel, in pixels of the image


class PixArtNetwork(DiffusersTransformer):
    """Predicts the noise. The module also outputs a variance, which is neither trained nor used here."""

    regions: ClassVar[tuple[str, ...]] = ("BasicTransformerBlock",)
    adapter_files: ClassVar[str | None] = None

    def arguments(self, x_t: Tensor, t_B: Tensor, condition: Condition) -> dict[str, Any]:
        text = condition[TEXT]
        return {
            "hidden_states": x_t,
            "timestep": t_B,
            "encoder_hidden_states": text.tokens_BLD,
            "encoder_attention_mask": text.mask_BL,
            "added_cond_kwargs": self.size_of(x_t),
        }

    def size_of(self, x_t: Tensor) -> dict[str, Tensor | None]:
        """Height and width [B,2] of x_t's image in pixels and their ratio [B,1]; None if they are not embedded."""
        if not self.transformer.use_additional_conditions:
            return {"resolution": None, "aspect_ratio": None}
        height, width = (side * VAE_FACTOR for side in x_t.shape[-2:])
        resolution = torch.empty(len(x_t), 2, device=x_t.device)  # a copy from the host would wait for the device
        resolution[:, 0], resolution[:, 1] = height, width
        ratio = torch.full((len(x_t), 1), height / width, device=x_t.device)
        return {"resolution": resolution, "aspect_ratio": ratio}

    def image_tokens(self, index: int, output: Any, current: Pass) -> Tensor:
        tokens_BND: Tensor = output
        return tokens_BND

    def prediction(self, out: Tensor, x_t: Tensor) -> Tensor:
        return out[:, : x_t.shape[1]]
