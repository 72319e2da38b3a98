"""Types that are passed between parts.

Shapes: B batch, R rows of it whose prediction is requested, N tokens (N = h*w unless a mask is given), D width,
C channels, H/W spatial, A heads of attention, E their width, or that of a class token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from urepa.core.conditions import Condition
from urepa.core.teacher_names import ALONE


@dataclass(frozen=True)
class Tokens:
    """Tokens x_BND of a grid (h, w), row by row. `mask_BN` is True for tokens that count (None: all do)."""

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
        """The map's pixels as tokens. It is a view: gradients at the tokens are gradients at the map."""
        h, w = map_BChw.shape[-2:]
        return Tokens(map_BChw.flatten(2).transpose(1, 2), (h, w))

    def to_map(self) -> Tensor:
        """The tokens as a map [B,D,h,w], which is a view."""
        return self.x_BND.transpose(1, 2).unflatten(2, self.grid)

    def float(self) -> "Tokens":
        """The tokens in fp32."""
        return replace(self, x_BND=self.x_BND.float())

    def to(self, device: torch.device) -> "Tokens":
        """The tokens on the device, copied without synchronising, in their precision."""
        x_BND, mask_BN = (None if x is None else x.to(device, non_blocking=True) for x in (self.x_BND, self.mask_BN))
        assert x_BND is not None
        return replace(self, x_BND=x_BND, mask_BN=mask_BN)


@dataclass(frozen=True)
class Attention:
    """What the tokens of one block attend by: queries and keys [B,A,N,E] of A heads of width E. In each head token m
    attends to token n with the share softmax_n(scale·q_m·k_n)."""

    q_BANE: Tensor
    k_BANE: Tensor
    scale: float

    def map(self, change: Callable[[Tensor], Tensor]) -> "Attention":
        """The same change of queries and keys."""
        return replace(self, q_BANE=change(self.q_BANE), k_BANE=change(self.k_BANE))


@dataclass(frozen=True)
class Denoised:
    """A backbone's output: the prediction for the requested rows, and the tapped states of the whole batch, before any
    head, with the attention of the blocks that it was asked for (`urepa.core.attention_protocols.AttentionMaps`)."""

    prediction_RCHW: Tensor
    features: dict[str, Tokens] = field(default_factory=dict)
    attention: dict[str, Attention] = field(default_factory=dict)
    class_RE11: Tensor | None = None  # that of the class token (`urepa.core.class_token_protocols`)


def no_rows(device: torch.device) -> Tensor:
    """An empty selection of rows. With it, a backbone stops after its deepest tap."""
    return torch.empty(0, dtype=torch.long, device=device)


class Slot(Protocol):
    """Memory that is reused once the device has copied it."""

    copied: torch.cuda.Event | None


@dataclass(frozen=True)
class Batch:
    """One micro-batch of one rank. `ids` are the keys of the latents: SAMPLE_ID, or SAMPLE_ID/flip."""

    ids: list[str]
    x0: Tensor
    noise: Tensor
    t_B: Tensor
    condition: Condition
    teachers: dict[str, Tokens]  # by name, on its grid for this batch; empty if no teacher is used
    rows_R: Tensor | None = None  # the samples with a diffusion term; None: all
    draws: dict[str, Tensor] = field(default_factory=dict)  # by purpose: a uniform number in [0,1) of each sample [B]
    attention: dict[int, Attention] = field(default_factory=dict)  # of the teacher, by its block
    class_noise_BE11: Tensor | None = None  # standard normal, of a class token that is denoised with the image
    whole: Condition | None = None  # the condition before training withheld parts of it; None: `condition`, or unread
    is_aligned: bool = True  # False: the alignment has ended, also that of a loss without a teacher
    slot: "Slot | None" = None  # the memory that holds the batch

    def to(self, device: torch.device) -> "Batch":
        """The batch on the device, copied without synchronising. Tokens keep their stored precision."""
        move: dict[str, Any] = {
            name: value.to(device, non_blocking=True)
            for name in ("x0", "noise", "t_B", "rows_R", "class_noise_BE11")
            if (value := getattr(self, name)) is not None
        }
        teachers = {name: tokens.to(device) for name, tokens in self.teachers.items()}
        move["draws"] = {name: draw_B.to(device, non_blocking=True) for name, draw_B in self.draws.items()}
        move["attention"] = {
            block: one.map(lambda x: x.to(device, non_blocking=True)) for block, one in self.attention.items()
        }
        if self.whole is not None:
            move["whole"] = self.whole.to(device)
        condition = self.condition.to(device)
        if self.slot is not None and device.type == "cuda":
            self.slot.copied = torch.cuda.Event()
            self.slot.copied.record()
        return replace(self, condition=condition, teachers=teachers, **move)

    @property
    def teacher_BND(self) -> Tensor | None:
        """The tokens of a single teacher."""
        return self.teachers[ALONE].x_BND if ALONE in self.teachers else None

    @property
    def grids(self) -> dict[str, tuple[int, int]]:
        """Rows and columns of each teacher's tokens in this batch, which are passed to its heads."""
        return {name: tokens.grid for name, tokens in self.teachers.items()}

    def pin_memory(self) -> "Batch":
        """The batch in pinned memory. Tokens already are in pinned memory."""
        pin: dict[str, Any] = {
            name: value.pin_memory()
            for name in ("x0", "noise", "t_B", "rows_R", "class_noise_BE11")
            if (value := getattr(self, name)) is not None
        }
        pin["draws"] = {name: draw_B.pin_memory() for name, draw_B in self.draws.items()}
        if self.whole is not None:
            pin["whole"] = self.whole.pin()
        return replace(self, condition=self.condition.pin(), **pin)
