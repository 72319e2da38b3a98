"""The small U-Net that cross-attends to text: diffusers' UNet2DConditionModel with its own projections of tokens and of
a pooled vector.

Shapes: B batch, L positions, D width of a token, P width of the pooled vector, E width of cross-attention, T time
embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from urepa.core.conditions import Condition
from urepa.core.part_names import POOLED, TEXT
from urepa.models.backbones.unet_net import StagedUNet, diffusers_unet


class TextUNet(StagedUNet):
    """If the text is withheld, it is replaced by a learned token of the text's width, at all positions, and a learned
    pooled vector."""

    def __init__(self, unet: Any, widths: Mapping[str, int]) -> None:
        super().__init__(unet)
        self.null_D = nn.Parameter(torch.randn(widths[TEXT]))
        self.null_P = nn.Parameter(torch.randn(widths[POOLED]))

    def own_tensors(self) -> dict[str, Tensor]:
        return {"null_D": self.null_D, "null_P": self.null_P}

    def attended(self, condition: Condition) -> tuple[Tensor, Tensor | None]:
        text = condition[TEXT]
        assert text.mask_BL is not None, "tokens have a mask"
        tokens_BLD = text.where_given(text.tokens_BLD, self.null_D)
        # all positions of the learned token are attended to, whatever mask the part has
        return self.project_text(tokens_BLD, text.mask_BL | ~text.given_B.unsqueeze(1))

    def added_to_time(self, condition: Condition, x_t: Tensor, temb_BT: Tensor) -> Tensor | None:
        pooled = condition[POOLED]
        added_BT: Tensor = self.unet.class_embedding(pooled.where_given(pooled.vector_BD, self.null_P))
        return added_BT


def text_unet(
    block_out_channels: list[int],
    attention: list[bool],
    layers_per_block: int,
    cross_attention_dim: int,
    head_dim: int,
    *,
    latent_shape: tuple[int, int, int],
    widths: Mapping[str, int],
) -> TextUNet:
    """A U-Net with random weights for text of these widths (by name of the condition's part).

    Raises UserError if the latent's size or the widths do not fit.
    """
    of_text: dict[str, Any] = {
        "class_embed_type": "projection",
        "projection_class_embeddings_input_dim": widths[POOLED],
    }
    if widths[TEXT] != cross_attention_dim:
        of_text |= {"encoder_hid_dim": widths[TEXT], "encoder_hid_dim_type": "text_proj"}
    unet = diffusers_unet(
        *(block_out_channels, attention, layers_per_block, cross_attention_dim, head_dim),
        latent_shape=latent_shape,
        **of_text,
    )
    return TextUNet(unet, widths)
