"""ChromaTransformer2DModel as a backbone.

Shapes: B batch, C channels, H/W latent, N image tokens, L text positions, D width.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from urepa.core.conditions import Condition
from urepa.core.part_names import TEXT
from urepa.models.backbones.two_streams_net import AXES, PackedTwoStreams, packed, positions


class ChromaNetwork(PackedTwoStreams):
    """Masked text tokens take no part in attention. The text's mask is True at the caption's tokens and at one padding
    token."""

    regions: ClassVar[tuple[str, ...]] = ("ChromaTransformerBlock", "ChromaSingleTransformerBlock")

    def __init__(self, transformer: Any) -> None:
        super().__init__(transformer)
        if transformer.gradient_checkpointing:
            transformer._gradient_checkpointing_func = self._recomputed_with_mask(
                transformer._gradient_checkpointing_func
            )

    def arguments(self, x_t: Tensor, t_B: Tensor, condition: Condition) -> dict[str, Any]:
        text = condition[TEXT]
        grid = self.grid_of(x_t)
        return {
            "hidden_states": packed(x_t),
            "timestep": t_B,
            "encoder_hidden_states": text.tokens_BLD,
            "attention_mask": mask_of(condition, grid[0] * grid[1]),
            "txt_ids": torch.zeros(text.tokens_BLD.shape[1], AXES, device=x_t.device),
            "img_ids": positions(grid, x_t.device),
        }

    def _recomputed_with_mask(self, recomputed: Any) -> Any:
        """diffusers' function that computes a block again in the backward pass. It adds the mask of single-stream
        blocks, which diffusers 0.42 omits there."""
        single = set(self.transformer.single_transformer_blocks)

        def with_mask(block: nn.Module, *inputs: Any) -> Any:
            if block not in single:
                return recomputed(block, *inputs)
            assert self._pass is not None
            assert len(inputs) == 3, "tokens, modulation and positions, without a mask"
            return recomputed(block, *inputs, mask_of(self._pass.condition, self._pass.tokens))

        return with_mask


def mask_of(condition: Condition, tokens: int) -> Tensor:
    """The mask [B,L+N], True at the text tokens that take part in attention and at all N image tokens. It is boolean,
    because attention adds a float mask to its scores."""
    mask_BL = condition[TEXT].mask_BL
    assert mask_BL is not None, "tokens have a mask"
    return torch.cat([mask_BL, mask_BL.new_ones(len(mask_BL), tokens)], dim=1)
