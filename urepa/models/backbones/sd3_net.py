"""SD3Transformer2DModel as a backbone.

Shapes: B batch, C channels, H/W latent, N image tokens, D width, L text positions, P width of the pooled vector.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from urepa.core.conditions import Condition
from urepa.core.part_names import POOLED, TEXT
from urepa.models.backbones.diffusers_transformer_net import DiffusersTransformer, Pass

TIMESTEPS = 1000  # the module's time at t = 1


class SD3Network(DiffusersTransformer):
    """As in the pipeline, attention has no mask: all text tokens take part in it, padding included."""

    regions: ClassVar[tuple[str, ...]] = ("JointTransformerBlock",)
    text_alone: ClassVar[str] = r"\.(?:attn\.to_add_out|ff_context)\."
    adapted: ClassVar[str] = DiffusersTransformer.adapted + "|add_q_proj|add_k_proj|add_v_proj|to_add_out"
    adapter_files: ClassVar[str | None] = "SD3LoraLoaderMixin"

    def arguments(self, x_t: Tensor, t_B: Tensor, condition: Condition) -> dict[str, Any]:
        return {
            "hidden_states": x_t,
            "timestep": t_B * TIMESTEPS,
            "encoder_hidden_states": condition[TEXT].tokens_BLD,
            "pooled_projections": condition[POOLED].vector_BD,
        }

    def image_tokens(self, index: int, output: Any, current: Pass) -> Tensor:
        tokens_BND: Tensor = output[1]
        return tokens_BND
