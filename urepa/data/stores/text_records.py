"""The record of a caption: its tokens, their mask, its pooled vector and the tokens of stacked layers, concatenated in
fp16, so that one read returns all of them.

Shapes: B captions, L positions, D width of a token, P width of the pooled vector, S stacked layers, E width of their
tokens, V values of a record, L·D + L + P + S·L·E.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from urepa.core.errors import UserError
from urepa.core.text_protocols import EncodedText, TextEncoder, layers_width, stacked_layers


@dataclass(frozen=True)
class TextShape:
    """Sizes of a caption's record."""

    length: int  # L
    width: int  # D
    pooled_width: int  # P
    layers: int = 0  # S
    layers_width: int = 0  # E

    @classmethod
    def of(cls, encoder: TextEncoder) -> TextShape:
        """The sizes that a text encoder declares."""
        layers = len(stacked_layers(encoder))
        return cls(encoder.length, encoder.width, encoder.pooled_width, layers, layers_width(encoder))

    @property
    def sizes(self) -> list[int]:
        """The number of values of each part of a record, in their order."""
        layers = self.layers * self.length * self.layers_width
        return [self.length * self.width, self.length, self.pooled_width, layers]

    @property
    def values(self) -> int:
        """V."""
        return sum(self.sizes)

    def pack(self, found: EncodedText) -> Tensor:
        """Records [B,V], float32. Raises UserError if a value exceeds the range of fp16."""
        tokens_BLD, pooled_BP, layers_BSLE = found.tokens_BLD, found.pooled_BP, found.layers_BSLE
        assert tokens_BLD.shape[1:] == (self.length, self.width), f"tokens are {tuple(tokens_BLD.shape)}"
        assert pooled_BP.shape[1:] == (self.pooled_width,), f"pooled vectors are {tuple(pooled_BP.shape)}"
        parts = [tokens_BLD.flatten(1), found.mask_BL.float(), pooled_BP]
        if self.layers:
            assert layers_BSLE is not None, "the encoder has layers"
            shape = (self.layers, self.length, self.layers_width)
            assert layers_BSLE.shape[1:] == shape, f"layers are {tuple(layers_BSLE.shape)}"
            parts.append(layers_BSLE.flatten(1))
        records_BV = torch.cat(parts, dim=1)
        if not records_BV.half().isfinite().all():
            most = float(records_BV.abs().max())
            raise UserError(
                f"the text encoder returns values up to {most:g}, but caption records (fp16) hold at most "
                "65504; choose another layer (data.text_encoder.layer), or another text encoder"
            )
        return records_BV

    def unpack(self, records_BV: Tensor) -> EncodedText:
        """The inverse of `pack`; float32 holding fp16 values."""
        tokens_B, mask_BL, pooled_BP, layers_B = records_BV.split(self.sizes, dim=1)
        tokens_BLD = tokens_B.float().unflatten(1, (self.length, self.width))
        layers_BSLE = None
        if self.layers:
            layers_BSLE = layers_B.float().unflatten(1, (self.layers, self.length, self.layers_width))
        return EncodedText(tokens_BLD, mask_BL != 0, pooled_BP.float(), layers_BSLE)
