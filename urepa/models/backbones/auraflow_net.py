"""AuraFlowTransformer2DModel as a backbone.

Shapes: B batch, C channels, H/W latent, L text positions, D width.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from urepa.core.conditions import Condition
from urepa.core.part_names import TEXT
from urepa.models.backbones.two_streams_net import TwoStreams


class AuraFlowNetwork(TwoStreams):
    """Masked text tokens are 0. As in the pipeline, attention has no mask, so these tokens take part in it. The module
    inserts 8 registers of its own before the text."""

    regions: ClassVar[tuple[str, ...]] = ("AuraFlowJointTransformerBlock", "AuraFlowSingleTransformerBlock")
    lists: ClassVar[tuple[str, ...]] = ("joint_transformer_blocks", "single_transformer_blocks")
    adapter_files: ClassVar[str | None] = "AuraFlowLoraLoaderMixin"

    def arguments(self, x_t: Tensor, t_B: Tensor, condition: Condition) -> dict[str, Any]:
        text = condition[TEXT]
        assert text.mask_BL is not None, "tokens have a mask"
        return {
            "hidden_states": x_t,
            "timestep": t_B,
            "encoder_hidden_states": text.tokens_BLD * text.mask_BL[:, :, None],
        }
