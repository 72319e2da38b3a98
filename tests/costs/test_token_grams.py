"""The plan's counts of the manifold loss at token level: matrices [B,N,N] of N = 1,369 tokens, and their grids.

Shapes: B batch, N tokens, E width of the teacher.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from urepa.costs.counting import AFTER_THE_MODEL
from urepa.costs.estimate import Device, Plan, plan

CPU = Device("cpu", "cpu", None, None)
B, E = 4, 384
Compose = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def planned(compose: Compose, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Plan]:
    """planned(*overrides): the plan of the quickstart's U-Net, whose middle block has 4x4 tokens, with DINOv2-S at
    37x37."""
    root: Path = tmp_path_factory.mktemp("none")
    fixed = ("teacher=dinov2_s", "teacher.grid=[37,37]", f"data.root={root}", f"trainer.batch_size={B}")

    def made(*overrides: str) -> Plan:
        return plan(compose(*fixed, "trainer.validation_group=4", "loss=urepa_token", *overrides), CPU)

    return made


def loss_flops(one: Plan) -> tuple[int, int]:
    """FLOPs of everything after the model, forward and backward."""
    forward, backward = (one.flops(direction)[AFTER_THE_MODEL] for direction in ("forward", "backward"))
    return forward, backward


@pytest.mark.slow
@pytest.mark.parametrize(("grid", "tokens"), [("teacher", 37 * 37), ("student", 4 * 4), ("[5,16]", 5 * 16)])
def test_the_products_of_tokens_are_counted_on_the_grid_of_the_comparison(
    planned: Callable[..., Plan], grid: str, tokens: int
) -> None:
    """Two products of B·N²·E multiply-adds forward and as many backward, which go through the student's tokens
    alone."""
    one = planned(f"loss.grid={grid}")
    assert one.counted.taps["mid"][:2] == (4, 4)
    assert loss_flops(one) == (4 * B * tokens**2 * E, 4 * B * tokens**2 * E)


@pytest.mark.slow
def test_the_peak_contains_the_similarity_matrices(planned: Callable[..., Plan]) -> None:
    """Three matrices at once, more with a larger batch; without the token level there are none, as pooled samples have
    a B by B matrix."""
    within, pooled = planned(), planned("loss.level=sample")
    matrix = B * (37 * 37) ** 2 * 4
    assert within.counted.step.peak - pooled.counted.step.peak > 2.5 * matrix
    saved = [of.counted.step.saved[AFTER_THE_MODEL] for of in (within, pooled)]
    assert saved[0] - saved[1] > 0.99 * matrix, "a pooled sample saves its mean instead"
    twice = planned(f"trainer.batch_size={2 * B}")
    assert twice.counted.step.peak - within.counted.step.peak > 2.5 * matrix
