"""The record of a caption: its tokens, their mask and its pooled vector, concatenated in fp16, so that one read returns
all three.

Shapes: B captions, L positions, D width of a token, P width of the pooled vector, V values of a record, L·D + L + P.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from urepa.core.errors import UserError


@dataclass(frozen=True)
class TextShape:
    """Sizes of a caption's record."""

    length: int  # L
    width: int  # D
    pooled_width: int  # P

    @property
    def values(self) -> int:
        """V."""
        return self.length * self.width + self.length + self.pooled_width

    def pack(self, tokens_BLD: Tensor, mask_BL: Tensor, pooled_BP: Tensor) -> Tensor:
        """Records [B,V], float32. Raises UserError if a value exceeds the range of fp16."""
        assert tokens_BLD.shape[1:] == (self.length, self.width), f"tokens are {tuple(tokens_BLD.shape)}"
        assert pooled_BP.shape[1:] == (self.pooled_width,), f"pooled vectors are {tuple(pooled_BP.shape)}"
        records_BV = torch.cat([tokens_BLD.flatten(1), mask_BL.float(), pooled_BP], dim=1)
        if not records_BV.half().isfinite().all():
            most = float(records_BV.abs().max())
            raise UserError(
                f"the text encoder returns values up to {most:g}, but caption records (fp16) hold at most "
                "65504; choose another layer (data.text_encoder.layer), or another text encoder"
            )
        return records_BV

    def unpack(self, records_BV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens [B,L,D], their mask [B,L] (bool) and pooled vectors [B,P], float32 holding fp16 values."""
        sizes = [self.length * self.width, self.length, self.pooled_width]
        tokens_B, mask_BL, pooled_BP = records_BV.split(sizes, dim=1)
        return tokens_B.float().unflatten(1, (self.length, self.width)), mask_BL != 0, pooled_BP.float()
