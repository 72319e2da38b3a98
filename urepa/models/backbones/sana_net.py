"""SanaTransformer2DModel as a backbone.

Shapes: B batch, C channels, H/W latent, N image tokens, D width, L text positions.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from urepa.core.conditions import Condition
from urepa.core.errors import UserError
from urepa.core.part_names import TEXT
from urepa.models.backbones.diffusers_transformer_net import DiffusersTransformer, Pass

TIMESTEPS = 1000  # the module's time at t = 1, before it is multiplied by the module's own scale


class SanaNetwork(DiffusersTransformer):
    """A token is one latent pixel, which covers 32x32 pixels of the image."""

    regions: ClassVar[tuple[str, ...]] = ("SanaTransformerBlock",)
    adapter_files: ClassVar[str | None] = "SanaLoraLoaderMixin"

    def __init__(self, transformer: Any) -> None:
        super().__init__(transformer)
        if transformer.config.guidance_embeds:
            raise UserError(
                "these weights are of Sana-Sprint, which is distilled to few steps; give backbone.weights of a Sana"
            )

    def arguments(self, x_t: Tensor, t_B: Tensor, condition: Condition) -> dict[str, Any]:
        text = condition[TEXT]
        return {
            "hidden_states": x_t,
            "timestep": t_B * TIMESTEPS * self.transformer.config.timestep_scale,
            "encoder_hidden_states": text.tokens_BLD,
            "encoder_attention_mask": text.mask_BL,
        }

    def image_tokens(self, index: int, output: Any, current: Pass) -> Tensor:
        tokens_BND: Tensor = output
        return tokens_BND
