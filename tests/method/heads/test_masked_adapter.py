"""PixelREPA's masked adapter against a computation by hand, with masks by address; and two ranks as one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from urepa.core import random_draws
from urepa.core.errors import UserError
from urepa.core.types import Tokens
from urepa.method.heads.masked_adapter import MaskedAdapter
from urepa.method.heads.masked_adapter_net import PURPOSE, MaskedAdapterHead
from urepa.models.backbones.sit_net import sine_cosine
from urepa.models.token_draws import draw_purposes, hand_out, uniform_of_tokens

Build = Callable[..., Any]
D, E, GRID = 8, 5, (2, 3)
T = torch.tensor([0.1, 0.9])
U = torch.tensor([0.25, 0.75])


def head(share: float = 0.5, seed: int = 0) -> MaskedAdapterHead:
    """A head none of whose weights is 0."""
    torch.manual_seed(seed)
    made = MaskedAdapterHead(share, 2, 2, in_width=D, out_width=E)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return made


def attended(block: Any, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """A block of SiT from its equations, with the softmax written out."""
    shift1, scale1, gate1, shift2, scale2, gate2 = (
        F.silu(c) @ block.adaLN_modulation[1].weight.T + block.adaLN_modulation[1].bias
    ).chunk(6, 1)
    h = F.layer_norm(x, (D,), eps=1e-6) * (1 + scale1[:, None]) + shift1[:, None]
    q, k, v = (h @ block.attn.qkv.weight.T + block.attn.qkv.bias).chunk(3, 2)
    parts = []
    for own in (slice(0, D // 2), slice(D // 2, D)):
        weights = (q[..., own] @ k[..., own].mT / (D // 2) ** 0.5).softmax(-1)
        parts.append(weights @ v[..., own])
    x = x + gate1[:, None] * (torch.cat(parts, 2) @ block.attn.proj.weight.T + block.attn.proj.bias)
    h = F.layer_norm(x, (D,), eps=1e-6) * (1 + scale2[:, None]) + shift2[:, None]
    h = F.gelu(h @ block.mlp.fc1.weight.T + block.mlp.fc1.bias, approximate="tanh")
    return x + gate2[:, None] * (h @ block.mlp.fc2.weight.T + block.mlp.fc2.bias)


@pytest.mark.parametrize("training", [True, False])
def test_it_is_masking_blocks_and_a_projection(training: bool) -> None:
    own = head().train(training)
    hand_out(own, {PURPOSE: U})
    tapped = Tokens(torch.randn(2, 6, D), GRID)
    with torch.no_grad():
        found = own(tapped, T, GRID)
        masked = uniform_of_tokens(U, 6) < 0.5
        assert masked.any()
        assert not masked.all()
        x = tapped.x_BND.clone()
        if training:
            x[masked] = (own.mask_token + sine_cosine(GRID, D)).expand(2, -1, -1)[masked]
        c = own.time(T)
        for block in own.blocks:
            x = attended(block, x, c)
        first, norm, _, last = own.layers
        x = F.layer_norm(x @ first.weight.T + first.bias, (D,), norm.weight, norm.bias)
        x = F.silu(x) @ last.weight.T + last.bias
    torch.testing.assert_close(found.x_BND, x / x.norm(dim=-1, keepdim=True), atol=1e-5, rtol=1e-4)
    own.unit_length = False
    torch.testing.assert_close(own(tapped, T, GRID).x_BND, x, atol=1e-5, rtol=1e-4)


def test_gradients_reach_the_tokens_that_are_not_masked_and_all_weights() -> None:
    own = head()
    hand_out(own, {PURPOSE: U})
    x_BND = torch.randn(2, 6, D, requires_grad=True)
    state = torch.get_rng_state()
    own(Tokens(x_BND, GRID), T, GRID).x_BND[..., 0].sum().backward()
    assert torch.equal(state, torch.get_rng_state()), "nothing is drawn from the global generator"
    assert x_BND.grad is not None
    masked = uniform_of_tokens(U, 6) < 0.5
    assert torch.equal(x_BND.grad.abs().sum(-1) == 0, masked)
    assert all(p.grad is not None and p.grad.any() for p in own.parameters())


def test_other_grids_and_what_does_not_fit() -> None:
    own = head().eval()
    tokens = own(Tokens(torch.randn(2, 6, D), GRID), T, (4, 6))
    assert (tokens.grid, tokens.x_BND.shape) == ((4, 6), (2, 24, E))
    with pytest.raises(UserError, match="some of this tap's do not count"):
        own(Tokens(torch.randn(2, 6, D), GRID, torch.ones(2, 6, dtype=torch.bool)), T, GRID)
    with pytest.raises(UserError, match=r"head\.heads=3: the tap has tokens of width 8"):
        MaskedAdapter(share=0.2, depth=1, heads=3).build(in_width=D, out_width=E)
    assert draw_purposes(MaskedAdapter(share=0.0, depth=1, heads=2).build(in_width=D, out_width=E)) == ()
    with pytest.raises(AssertionError, match="no draws for head_mask"):
        head()(Tokens(torch.randn(2, 6, D), GRID), T, GRID)


@pytest.mark.slow
def test_the_masks_of_a_run_are_those_of_their_addresses(small_sit: list[str], trainer_of: Build) -> None:
    """And validation masks nothing: a share of 0 has the same values there."""
    own = (*(o for o in small_sit if not o.startswith("head")), "head=masked_adapter", "head.heads=2")
    trainer = trainer_of(*own)
    batch = trainer.reader.read(3)[0]
    seed, size = trainer.seed, len(batch.ids)
    expected = [random_draws.generator(seed, PURPOSE, 3, p).random() for p in range(size)]
    torch.testing.assert_close(
        batch.draws[PURPOSE].double(), torch.tensor(expected, dtype=torch.float64), atol=1e-7, rtol=0
    )
    other = trainer_of(*own, "head.share=0")
    values = [one.validate(0) for one in (trainer_of(*own), other)]
    assert values[0] == values[1]
