"""HiDreamImageTransformer2DModel as a backbone.

Shapes: B batch, C channels, H/W latent, p patch, h/w grid of image tokens, N = h·w image tokens, D width, S stacked
layers, L text positions, M all tokens of a batch, K experts per token.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from urepa.core.conditions import Condition
from urepa.core.errors import UserError
from urepa.core.part_names import LAYERS, POOLED, TEXT
from urepa.models.backbones.diffusers_transformer_net import PREFIX, DiffusersTransformer, Pass

TIMESTEPS = 1000  # the module's time at t = 1
PROJECTIONS = "caption_projection."


class HiDreamNetwork(DiffusersTransformer):
    """Image tokens come first in the sequences of the blocks. If the latents are not square, padding follows them.

    The module's output is the velocity from noise to data. In training mode the output stays in patches and the experts
    compute with gradients; in evaluation mode neither is the case.
    """

    regions: ClassVar[tuple[str, ...]] = ("HiDreamBlock",)
    lists: ClassVar[tuple[str, ...]] = ("double_stream_blocks", "single_stream_blocks")
    output_layers: ClassVar[tuple[str, ...]] = ("final_layer",)
    text_alone: ClassVar[str] = r"\.(?:attn1\.to_out_t|ff_t)\."
    adapted: ClassVar[str] = r"to_q|to_k|to_v|to_out|to_q_t|to_k_t|to_v_t|to_out_t"
    adapter_files: ClassVar[str | None] = "HiDreamImageLoraLoaderMixin"

    def __init__(self, transformer: Any) -> None:
        super().__init__(transformer)
        if transformer.config.force_inference_output:
            raise UserError(
                "config.json of these weights has force_inference_output=true, with which experts compute without "
                "gradients; write false there"
            )

    def arguments(self, x_t: Tensor, t_B: Tensor, condition: Condition) -> dict[str, Any]:
        layers_BSLD = condition[LAYERS].layers_BSLD
        most = max(self.transformer.config.llama_layers)
        if most >= layers_BSLD.shape[1]:
            raise UserError(
                f"a block sees layer {most} of the text, counted from 0, and the text encoder gives "
                f"{layers_BSLD.shape[1]} layers; give data.text_encoder.layers all that backbone.llama_layers has"
            )
        return {
            "hidden_states": x_t,
            "timesteps": t_B * TIMESTEPS,
            "encoder_hidden_states_t5": condition[TEXT].tokens_BLD,
            "encoder_hidden_states_llama3": layers_BSLD.transpose(0, 1),
            "pooled_embeds": condition[POOLED].vector_BD,
        }

    def fix_shapes(self) -> None:
        """Assigns equally many tokens to each expert (`urepa.core.backbone_protocols.ShapesFromValues`)."""
        for module in self.transformer.modules():
            if hasattr(module, "experts"):
                module.forward = partial(_by_all_experts, module)

    def image_tokens(self, index: int, output: Any, current: Pass) -> Tensor:
        sequence: Tensor = output[0] if isinstance(output, tuple) else output
        return sequence[:, : current.tokens]

    def with_tokens(self, index: int, output: Any, tokens_BND: Tensor, current: Pass) -> Any:
        if isinstance(output, tuple):
            image, text = output
            return torch.cat([tokens_BND, image[:, current.tokens :]], 1), text
        return torch.cat([tokens_BND, output[:, current.tokens :]], 1)

    def prediction(self, out: Tensor, x_t: Tensor) -> Tensor:
        if out.shape == x_t.shape:
            return -out
        grid, side = self.grid_of(x_t), self.transformer.config.patch_size  # in training mode: B, C, N and padding, p·p
        patches = out[:, :, : grid[0] * grid[1]].unflatten(3, (side, side)).unflatten(2, grid)  # B, C, h, w, p, p
        return -patches.transpose(3, 4).flatten(4, 5).flatten(2, 3)

    def place_of(self, name: str) -> int:
        """Each projection of the text belongs to the block that uses it, except the last two, which all blocks use."""
        own = name.removeprefix(PREFIX)
        if not own.startswith(PROJECTIONS):
            return super().place_of(name)
        block = int(own.split(".")[1])
        return block if block < len(self.blocks) - 1 else -1


def _by_all_experts(mixture: Any, x_BND: Tensor) -> Tensor:
    """The same amount of computation as a mixture of experts has for these tokens. The tokens are divided equally among
    the experts, in their order."""
    weights_MK = F.linear(x_BND.flatten(0, 1), mixture.gate.weight).softmax(-1).topk(mixture.num_activated_experts)[0]
    parts = x_BND.flatten(0, 1).repeat_interleave(weights_MK.shape[1], 0).chunk(len(mixture.experts))
    y_XD = torch.cat([expert(part) for expert, part in zip(mixture.experts, parts, strict=True)])
    y_MD = (y_XD.unflatten(0, weights_MK.shape) * weights_MK[..., None]).sum(1)
    return y_MD.view_as(x_BND) + mixture.shared_experts(x_BND)
