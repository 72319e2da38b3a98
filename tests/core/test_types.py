"""Tokens are views of feature maps."""

from __future__ import annotations

import pytest
import torch

from urepa.core.types import Tokens


def test_a_round_trip_through_tokens_is_a_view() -> None:
    map_BChw = torch.randn(2, 5, 3, 4)
    tokens = Tokens.from_map(map_BChw)
    assert tokens.grid == (3, 4)
    assert tokens.x_BND.shape == (2, 12, 5)
    back = tokens.to_map()
    assert torch.equal(back, map_BChw)
    assert tokens.x_BND.data_ptr() == back.data_ptr() == map_BChw.data_ptr()


def test_tokens_go_row_by_row() -> None:
    map_BChw = torch.randn(1, 5, 3, 4)
    tokens = Tokens.from_map(map_BChw).x_BND
    assert all(torch.equal(tokens[0, 4 * r + c], map_BChw[0, :, r, c]) for r in range(3) for c in range(4))


def test_gradients_at_tokens_are_gradients_at_the_map() -> None:
    map_BChw = torch.randn(2, 5, 3, 4, requires_grad=True)
    tokens = Tokens.from_map(map_BChw)
    loss = (tokens.to_map() ** 3).sum()
    at_tokens, at_map = torch.autograd.grad(loss, [tokens.x_BND, map_BChw])
    assert torch.equal(Tokens(at_tokens, (3, 4)).to_map(), at_map)


def test_tokens_that_do_not_fill_their_grid_are_refused() -> None:
    with pytest.raises(AssertionError, match="12 tokens do not fill a 4x4 grid"):
        Tokens(torch.zeros(1, 12, 2), (4, 4))
    with pytest.raises(AssertionError):
        Tokens(torch.zeros(12, 2), (3, 4))


def test_a_mask_may_exclude_parts_of_the_grid() -> None:
    Tokens(torch.zeros(1, 12, 2), (4, 4), torch.ones(1, 12, dtype=torch.bool))
