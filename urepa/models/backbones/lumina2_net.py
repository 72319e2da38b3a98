"""Lumina2Transformer2DModel as a backbone.

Shapes: B batch, C channels, H/W latent, N image tokens, D width, L text positions, S positions of both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from urepa.core.conditions import Condition
from urepa.core.errors import UserError
from urepa.core.part_names import TEXT
from urepa.models.backbones.diffusers_transformer_net import PREFIX, DiffusersTransformer, Pass

TEXT_ALONE = ("context_refiner", "time_caption_embed.caption_embedder")  # parameters that image tokens do not use


class Lumina2Network(DiffusersTransformer):
    """The first blocks process only image tokens, others beside them only text. The blocks after them process one
    sequence: a sample's text tokens, its image tokens, and padding.

    The module's time is 1 - t, from noise to data, and its output is the velocity in that direction.
    """

    regions: ClassVar[tuple[str, ...]] = ("Lumina2TransformerBlock",)
    lists: ClassVar[tuple[str, ...]] = ("noise_refiner", "layers")
    output_layers: ClassVar[tuple[str, ...]] = ("norm_out",)
    adapter_files: ClassVar[str | None] = "Lumina2LoraLoaderMixin"

    def __init__(self, transformer: Any) -> None:
        super().__init__(transformer)
        self._all_count = False  # see fix_shapes

    @property
    def width(self) -> int:
        return int(self.transformer.config.hidden_size)

    def arguments(self, x_t: Tensor, t_B: Tensor, condition: Condition) -> dict[str, Any]:
        text = condition[TEXT]
        length, positions = text.tokens_BLD.shape[1], self.transformer.config.axes_lens[0]
        if length >= positions:  # the text position of the image tokens follows that of the last text token
            raise UserError(
                f"texts have {length} tokens, and this transformer positions for fewer than {positions}; give "
                "data.text_encoder.length=256"
            )
        return {
            "hidden_states": x_t,
            "timestep": 1 - t_B,
            "encoder_hidden_states": text.tokens_BLD,
            "encoder_attention_mask": text.mask_BL,
        }

    def fix_shapes(self) -> None:
        """Treats all texts as having no padding (`urepa.core.backbone_protocols.ShapesFromValues`)."""
        self._all_count = True
        embedder = self.transformer.rope_embedder
        embed = embedder.forward
        embedder.forward = lambda hidden_states, mask_BL: embed(hidden_states, _AllCount(tuple(mask_BL.shape)))

    def image_tokens(self, index: int, output: Any, current: Pass) -> Tensor:
        if self._is_of_image_alone(index):
            tokens_BND: Tensor = output
            return tokens_BND
        starts = self._starts(current)
        return torch.stack([row[s : s + current.tokens] for row, s in zip(output, starts, strict=True)])

    def with_tokens(self, index: int, output: Any, tokens_BND: Tensor, current: Pass) -> Any:
        if self._is_of_image_alone(index):
            return output
        parts = zip(output, tokens_BND, self._starts(current), strict=True)
        return torch.stack([torch.cat([row[:s], own, row[s + len(own) :]]) for row, own, s in parts])

    def prediction(self, out: Tensor, x_t: Tensor) -> Tensor:
        return -out

    def lora_modules(self, targets: str, blocks: str) -> str:
        """Includes the blocks that process only text."""
        return super().lora_modules(targets, blocks).replace("(?:noise_refiner|", "(?:context_refiner|noise_refiner|")

    def _reaches(self, name: str, index: int) -> bool:
        is_of_text = name.removeprefix(PREFIX).startswith(TEXT_ALONE)
        return super()._reaches(name, index) and not (is_of_text and self._is_of_image_alone(index))

    def _is_of_image_alone(self, index: int) -> bool:
        return index < len(self.transformer.noise_refiner)

    def _starts(self, current: Pass) -> list[int]:
        """The index at which the image tokens of each sample begin: after its text tokens."""
        mask_BL: Any = current.condition[TEXT].mask_BL
        starts: list[int] = (_AllCount(tuple(mask_BL.shape)) if self._all_count else mask_BL).sum(dim=1).tolist()
        return starts


@dataclass(frozen=True)
class _AllCount:
    """Replaces a mask [B,L] that is True everywhere, without values."""

    shape: tuple[int, int]

    def sum(self, dim: int) -> _AllCount:
        return self

    def tolist(self) -> list[int]:
        return [self.shape[1]] * self.shape[0]
