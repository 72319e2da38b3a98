"""FluxTransformer2DModel as a backbone.

Shapes: B batch, C channels, H/W latent, L text positions, D width.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from urepa.core.conditions import Condition
from urepa.core.part_names import POOLED, TEXT
from urepa.models.backbones.two_streams_net import AXES, PackedTwoStreams, packed, positions


class FluxNetwork(PackedTwoStreams):
    """As in the pipeline, attention has no mask: all text tokens take part in it, padding included.

    Args:
        guidance: the scale that a distilled model embeds; None for a model without a guidance embedding.
    """

    regions: ClassVar[tuple[str, ...]] = ("FluxTransformerBlock", "FluxSingleTransformerBlock")

    def __init__(self, transformer: Any, guidance: float | None) -> None:
        super().__init__(transformer)
        self.guidance = guidance

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
