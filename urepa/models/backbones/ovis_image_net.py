"""OvisImageTransformer2DModel as a backbone.

Shapes: B batch, C channels, H/W latent, L text positions, D width of a text token.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from urepa.core.conditions import Condition
from urepa.core.part_names import TEXT
from urepa.models.backbones.flux_net import FluxNetwork
from urepa.models.backbones.two_streams_net import AXES, packed, positions


class OvisImageNetwork(FluxNetwork):
    """Flux's two streams and packed tokens. Text tokens have positions, and there is no pooled vector and no guidance
    embedding."""

    regions: ClassVar[tuple[str, ...]] = ("OvisImageTransformerBlock", "OvisImageSingleTransformerBlock")
    adapter_files: ClassVar[str | None] = None

    def __init__(self, transformer: Any) -> None:
        super().__init__(transformer, guidance=None)

    def arguments(self, x_t: Tensor, t_B: Tensor, condition: Condition) -> dict[str, Any]:
        text_BLD = condition[TEXT].tokens_BLD
        ids = torch.zeros(text_BLD.shape[1], AXES, device=x_t.device)
        ids[:, 1:] = torch.arange(text_BLD.shape[1], device=x_t.device)[:, None]
        return {
            **{"hidden_states": packed(x_t), "timestep": t_B, "encoder_hidden_states": text_BLD},
            **{"txt_ids": ids, "img_ids": positions(self.grid_of(x_t), x_t.device)},
        }
