"""Random numbers of single tokens for modules that draw in training: heads that mask tokens, backbones that route them.

Each sample of a batch has a uniform number by its address (`Batch.draws`: seed, purpose, step and position). A
sample's tokens get theirs from it by a hash of the sample's number and the token's index, in integer arithmetic, so
that they are the same on every device, for any number of ranks and micro-batches, and after a resume.

Shapes: B batch, N tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

BITS = 24  # of a number, which fp32 holds exactly
LOW = 0xFFFFFFFF
GOLDEN = 0x9E3779B9


class DrawingModule(nn.Module):
    """The base class of modules that draw. `draw_purpose`: what for, as part of the address; None: it does not draw.
    In eval mode nothing is drawn."""

    draw_purpose: str | None = None
    draw_B: Tensor | None = None  # of the present batch

    def token_draws(self, tokens: int) -> Tensor:
        """A uniform number in [0, 1) for each token of the present batch [B,N], fp32."""
        assert self.draw_B is not None, f"the batch has no draws for {self.draw_purpose}"
        return uniform_of_tokens(self.draw_B, tokens)


def uniform_of_tokens(draw_B: Tensor, tokens: int) -> Tensor:
    """A uniform number in [0, 1) for each token [B,N], fp32, from that of its sample."""
    sample_B = _mixed((draw_B.double() * 2**BITS).long() & LOW)
    token_N = torch.arange(1, tokens + 1, device=draw_B.device) * GOLDEN & LOW
    hashed_BN = _mixed((sample_B[:, None] + token_N) & LOW)
    return (hashed_BN >> (32 - BITS)).float() / 2**BITS


def _mixed(x: Tensor) -> Tensor:
    """A bijection of 32-bit numbers ("lowbias32" of Wellons' hash-prospector, from memory). They are held in int64, of
    whose products the low 32 bits are right also where they overflow."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & LOW
    x = ((x ^ (x >> 15)) * 0x846CA68B) & LOW
    return x ^ (x >> 16)


def draw_purposes(model: nn.Module) -> tuple[str, ...]:
    """What the modules of a model draw for, in alphabetical order."""
    return tuple(sorted({module.draw_purpose for module in _drawing(model) if module.draw_purpose is not None}))


def hand_out(model: Any, draws: Mapping[str, Tensor]) -> None:
    """Gives the modules of a model the numbers of their purposes in a batch [B]. A callable that is not a module gets
    none."""
    if isinstance(model, nn.Module):
        for module in _drawing(model):
            module.draw_B = None if module.draw_purpose is None else draws.get(module.draw_purpose)


@contextlib.contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Within the block the model is in eval mode, in which nothing is drawn; then each module has its mode again."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, was_training in modes.items():
            module.training = was_training


def _drawing(model: nn.Module) -> Iterator[DrawingModule]:
    return (module for module in model.modules() if isinstance(module, DrawingModule))
