"""Finite scalar quantisation against its formula."""

from __future__ import annotations

import itertools

import pytest
import torch

from urepa.models.fsq import FSQ

PUBLISHED = (8, 8, 8, 5, 5, 5)


def test_every_code_of_the_published_levels_is_its_own() -> None:
    fsq = FSQ(PUBLISHED)
    assert fsq.codes == 64_000
    codes = torch.arange(64_000)
    vectors = fsq.vectors(codes)
    assert torch.equal(fsq.indices(vectors), codes)
    values = [[(i - level // 2) / (level // 2) for i in range(level)] for level in PUBLISHED]
    expected = torch.tensor(list(itertools.product(*values[::-1]))).flip(1)  # the first number changes fastest
    torch.testing.assert_close(vectors, expected)


@pytest.mark.parametrize("level", [2, 3, 4, 5, 8, 9])
def test_a_number_takes_all_of_its_levels_and_no_other(level: int) -> None:
    fsq = FSQ([level])
    z = torch.linspace(-9, 9, 4001)[:, None]
    found = fsq(z)
    assert found.unique().tolist() == pytest.approx([(i - level // 2) / (level // 2) for i in range(level)])
    assert (found.diff(dim=0) >= 0).all()
    assert set(fsq.indices(found).tolist()) == set(range(level))


@pytest.mark.parametrize("level", [4, 5])
def test_it_is_the_papers_formula_and_gradients_pass_the_rounding(level: int) -> None:
    fsq, z = FSQ([level, level]), torch.randn(7, 2, dtype=torch.float64).float().requires_grad_()
    half, offset = (level - 1) * 1.001 / 2, 0.5 if level % 2 == 0 else 0.0
    shift = torch.atanh(torch.tensor(offset / half))
    found = fsq(z)
    torch.testing.assert_close(found, (torch.tanh(z + shift) * half - offset).round() / (level // 2))
    found.sum().backward()
    slope = half * (1 - torch.tanh(z.detach() + shift) ** 2) / (level // 2)
    torch.testing.assert_close(z.grad, slope)


def test_it_quantises_in_fp32_under_autocast() -> None:
    z = torch.randn(50, 6)
    with torch.autocast("cpu", torch.bfloat16):
        found = FSQ(PUBLISHED)(z)
    assert found.dtype == torch.float32
    assert torch.equal(found, FSQ(PUBLISHED)(z))
