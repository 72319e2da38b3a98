"""What the parts hand to each other.

Shapes: B batch, R rows of it whose prediction is asked for, N tokens (N = h*w unless a mask says otherwise),
D width, C channels, H/W spatial.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tokens:
    """Tokens x_BND of a grid (h, w), row by row; `mask_BN` is True where a token counts (None: all do)."""

    x_BND: Tensor
    grid: tuple[int, int]
    mask_BN: Tensor | None = None

    def __post_init__(self) -> None:
        assert self.x_BND.ndim == 3, f"tokens are [B,N,D], not {tuple(self.x_BND.shape)}"
        if self.mask_BN is None:
            assert self.x_BND.shape[1] == self.grid[0] * self.grid[1], (
                f"{self.x_BND.shape[1]} tokens do not fill a {self.grid[0]}x{self.grid[1]} grid"
            )

    @staticmethod
    def from_map(map_BChw: Tensor) -> "Tokens":
        """The map's pixels as tokens. A view: gradients at the tokens are gradients at the map."""
        h, w = map_BChw.shape[-2:]
        return Tokens(map_BChw.flatten(2).transpose(1, 2), (h, w))

    def to_map(self) -> Tensor:
        """[B,D,h,w], again a view."""
        return self.x_BND.transpose(1, 2).unflatten(2, self.grid)

    def float(self) -> "Tokens":
        """In fp32."""
        return replace(self, x_BND=self.x_BND.float())


@dataclass(frozen=True)
class Condition:
    """Class ids [B] (int64) and the id that means "no condition"."""

    ids_B: Tensor
    null_id: int

    @staticmethod
    def of_classes(ids_B: Tensor, num_classes: int, cfg_dropout: float) -> "Condition":
        """What a model is asked under outside of training: the classes; the null condition where training withheld
        every class (`cfg_dropout` of 1), so that no other was ever learnt."""
        given = Condition(ids_B, num_classes)
        return given.null() if cfg_dropout == 1 else given

    def null(self) -> "Condition":
        """The same batch without its condition."""
        return Condition(torch.full_like(self.ids_B, self.null_id), self.null_id)

    def to(self, device: torch.device) -> "Condition":
        """The same there."""
        return Condition(self.ids_B.to(device, non_blocking=True), self.null_id)

    def drop(self, mask_B: Tensor) -> "Condition":
        """Without the condition where `mask_B` is True (classifier-free guidance, spec 000 §3.4)."""
        return Condition(torch.where(mask_B, self.null_id, self.ids_B), self.null_id)


@dataclass(frozen=True)
class Denoised:
    """A backbone's answer: the prediction of the rows that were asked for, and the whole batch's tapped states,
    unprojected."""

    prediction_RCHW: Tensor
    features: dict[str, Tokens] = field(default_factory=dict)


def no_rows(device: torch.device) -> Tensor:
    """Rows of a batch: none. A backbone that is asked for these stops after its deepest tap."""
    return torch.empty(0, dtype=torch.long, device=device)
