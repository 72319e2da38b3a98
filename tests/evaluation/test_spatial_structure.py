"""Spatial self-similarity of tokens with a known answer, and compared with plain loops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import cos, pi
from typing import Any

import numpy as np
import pytest
import torch

from urepa.core.errors import UserError
from urepa.core.types import Tokens
from urepa.evaluation.context import Context
from urepa.evaluation.features import chunks, held_out_samples, subset, teacher_tokens
from urepa.evaluation.measures.spatial import Spatial
from urepa.evaluation.measures.spatial_math import _measures, contrast, decay_slope, local_distant

SPATIAL = Spatial(tap="mid", timestep=100, images=15, far=0.2, decay=0.27)


def by_hand(tokens: Tokens, far: int, upto: int) -> list[list[float]]:
    """LDS, CDS and RMSC of each image, pair by pair; `far` and `upto` in steps."""
    h, w = tokens.grid
    answers = []
    for x_ND in tokens.x_BND.double().numpy():
        unit = x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)
        at: dict[int, list[float]] = {}
        for i in range(h * w):
            for j in range(h * w):
                at.setdefault(abs(i // w - j // w) + abs(i % w - j % w), []).append(float(unit[i] @ unit[j]))
        distant = [s for d, row in at.items() if d >= far for s in row]
        slope = np.polyfit(range(1, upto + 1), [np.mean(at[d]) for d in range(1, upto + 1)], 1)[0]
        spread = np.sqrt(np.mean([np.sum((u - unit.mean(0)) ** 2) for u in unit]))
        answers.append([float(np.mean(at[1]) - np.mean(distant)), float(-slope), float(spread)])
    return answers


@pytest.mark.parametrize(
    ("grid", "far", "upto"),
    [((16, 16), 6, 8), ((8, 8), 3, 4), ((4, 4), 2, 2), ((2, 2), 2, 2), ((5, 9), 2, 3)],
)
def test_the_measures_are_those_of_plain_loops(grid: tuple[int, int], far: int, upto: int) -> None:
    """On 16x16 grids the distances are the published ones."""
    torch.manual_seed(0)
    tokens = Tokens(torch.randn(2, grid[0] * grid[1], 6) + 0.5, grid)
    found = torch.stack([local_distant(tokens, 0.2), decay_slope(tokens, 0.27), contrast(tokens)], dim=1)
    torch.testing.assert_close(found, torch.tensor(by_hand(tokens, far, upto), dtype=torch.float64))


def test_tokens_that_turn_evenly_along_a_line_have_a_closed_form() -> None:
    """Angles that increase linearly: the similarity of two tokens d apart is the cosine of d times the angle."""
    angle, n = pi / 60, 31
    ramp = torch.arange(n) * angle
    tokens = Tokens(torch.stack([ramp.cos(), ramp.sin()], dim=1)[None].float(), (1, n))
    distant = [cos(d * angle) for d in range(6, n) for _ in range(n - d)]
    expected = cos(angle) - sum(distant) / len(distant)
    assert float(local_distant(tokens, 0.2)) == pytest.approx(expected, abs=1e-6)
    slope = np.polyfit(range(1, 9), [cos(d * angle) for d in range(1, 9)], 1)[0]
    assert float(decay_slope(tokens, 0.27)) == pytest.approx(-slope, abs=1e-6)


@pytest.mark.parametrize(("h", "w"), [(3, 7), (6, 4)])
def test_stripes_on_a_rectangle_have_a_closed_form(h: int, w: int) -> None:
    """Columns of alternately opposite tokens: a step down keeps the token, a step to the right negates it. Only
    opposite corners have the largest distance."""
    sign = torch.tensor([(-1.0) ** (i % w) for i in range(h * w)])
    tokens = Tokens(torch.stack([sign, 0 * sign], dim=1)[None], (h, w))
    down, right = (h - 1) * w, h * (w - 1)
    expected = (down - right) / (down + right) - (-1) ** (w - 1)
    assert float(local_distant(tokens, 1.0)) == pytest.approx(expected, abs=1e-12)
    mean = 1 / w if w % 2 else 0  # of the signs
    assert float(contrast(tokens)) == pytest.approx((1 - mean**2) ** 0.5, abs=1e-12)


def test_tokens_that_are_all_alike_have_no_structure() -> None:
    tokens = Tokens(torch.tensor([1.0, 2.0, 3.0]).expand(2, 64, 3), (8, 8))
    for value in (local_distant(tokens, 0.2), decay_slope(tokens, 0.27), contrast(tokens)):
        torch.testing.assert_close(value, torch.zeros(2, dtype=torch.float64), atol=1e-7, rtol=0)


def test_shuffled_tokens_lose_their_place_and_keep_their_contrast() -> None:
    torch.manual_seed(0)
    y, x = torch.meshgrid(torch.linspace(0, 1, 16), torch.linspace(0, 1, 16), indexing="ij")
    smooth = Tokens(torch.stack([x.cos(), x.sin(), (2 * y).cos(), (2 * y).sin()], -1).view(1, 256, 4), (16, 16))
    anywhere = torch.stack([smooth.x_BND[0, torch.randperm(256)] for _ in range(50)])
    shuffled = Tokens(anywhere, (16, 16))
    assert float(local_distant(smooth, 0.2)) > 0.1 > 50 * abs(float(local_distant(shuffled, 0.2).mean()))
    assert float(decay_slope(smooth, 0.27)) > 20 * abs(float(decay_slope(shuffled, 0.27).mean()))
    torch.testing.assert_close(contrast(shuffled), contrast(smooth).expand(50))


def test_neighbours_on_a_checkerboard_are_less_similar() -> None:
    sign = torch.tensor([(-1.0) ** (i // 8 + i % 8) for i in range(64)])
    tokens = Tokens(torch.stack([sign, torch.zeros(64)], dim=1)[None], (8, 8))
    assert float(local_distant(tokens, 0.2)) < -0.9  # neighbours are opposite; distant ones cancel
    assert float(contrast(tokens)) == 1


@pytest.mark.slow
def test_a_run_reports_tap_head_teacher_and_untrained_tap(context: Context) -> None:
    found = SPATIAL(context)
    samples = subset(held_out_samples(context), 15)
    (chunk,) = chunks(context, samples, ("mid",), 100)
    sources = {"tap": chunk.taps["mid"], "head": chunk.heads["mid"], "teacher": teacher_tokens(context, samples)}
    sources["untrained_tap"] = sources["tap"]  # nothing has trained here
    for what, tokens in sources.items():
        steps = sum(tokens.grid) - 2
        expected = np.mean(by_hand(tokens, max(2, round(0.2 * steps)), max(2, round(0.27 * steps))), axis=0)
        values = [found[f"final/{measure}/{what}"] for measure in ("lds", "cds", "rmsc")]
        np.testing.assert_allclose(values, expected, atol=1e-6, err_msg=what)
    assert len(found) == 12
    beside = SPATIAL(replace(context, random=lambda: context.model))
    assert {key for key in beside if key not in found} == {f"final/{m}/random_tap" for m in ("lds", "cds", "rmsc")}


def test_without_a_teacher_there_is_the_tap_alone(make_context: Callable[..., Context]) -> None:
    found: dict[str, Any] = SPATIAL(make_context("loss=none"))
    assert {key.split("/")[2] for key in found} == {"tap", "untrained_tap"}


def test_a_grid_without_distances_is_refused() -> None:
    with pytest.raises(UserError, match="a grid of 1x2 tokens is too small"):
        _measures(SPATIAL, Tokens(torch.ones(1, 2, 3), (1, 2)))
