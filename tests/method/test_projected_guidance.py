"""Adaptive projected guidance in closed form, and where it is classifier-free guidance."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from class_ids import of_ids
from torch import Tensor, nn

from urepa.core.types import Denoised
from urepa.method.flow_sampling import sample
from urepa.method.guidance import guided_predictor
from urepa.method.objectives.flow_math import FlowMath
from urepa.method.projected_guidance import ProjectedGuidance, Projection

PLAIN = Projection(eta=1.0, threshold=torch.inf, momentum=0.0)


def pair(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    u, c = torch.randn(2, 3, 2, 2, 2, generator=generator, dtype=torch.float64)
    return u, c


def test_without_its_three_changes_it_is_classifier_free_guidance() -> None:
    rule = ProjectedGuidance(PLAIN)
    for seed in (0, 1):
        u, c = pair(seed)
        torch.testing.assert_close(rule(u, c, 3.0), u + 3 * (c - u))


def test_what_it_adds_is_across_the_conditional_prediction() -> None:
    u, c = pair()
    added = ProjectedGuidance(Projection(0.0, torch.inf, 0.0))(u, c, 3.0) - c
    along = (added * c).sum((1, 2, 3))
    torch.testing.assert_close(along, torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)
    whole = 2 * (c - u)
    unit = c / c.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    torch.testing.assert_close(added, whole - (whole * unit).sum((1, 2, 3), keepdim=True) * unit)


def test_longer_differences_are_cut_to_the_threshold_and_shorter_ones_left() -> None:
    u, c = pair()
    lengths = (c - u).flatten(1).norm(dim=1)
    threshold = float(lengths.sort().values[1])
    added = ProjectedGuidance(Projection(1.0, threshold, 0.0))(u, c, 2.0) - c
    torch.testing.assert_close(added.flatten(1).norm(dim=1), lengths.clamp(max=threshold))
    torch.testing.assert_close(
        torch.nn.functional.cosine_similarity(added.flatten(1), (c - u).flatten(1)), torch.ones(3, dtype=torch.float64)
    )


def test_the_running_sum_is_the_papers() -> None:
    rule, running = ProjectedGuidance(Projection(1.0, torch.inf, -0.5)), 0.0
    for seed in range(4):
        u, c = pair(seed)
        running = c - u - 0.5 * running
        torch.testing.assert_close(rule(u, c, 2.0), c + running)


class OfClasses(nn.Module):
    """A velocity of the class alone: 1 for class 0, −1 without one."""

    def forward(self, x_t: Tensor, t_B: Tensor, condition: Any, *_: Any) -> Denoised:
        given_B = condition["class"].given_B
        value_B = torch.where(given_B, 1.0, -1.0)
        return Denoised(value_B.view(-1, 1, 1, 1).expand_as(x_t))


def test_a_samplers_runs_each_begin_without_a_past() -> None:
    condition = of_ids(torch.zeros(2, dtype=torch.long), 1)
    noise = torch.randn(2, 1, 2, 2)
    arguments: tuple[Any, ...] = (OfClasses(), FlowMath("linear", "uniform"), noise, condition, "euler", 4)
    how = ({"class": 3.0}, (0.0, 1.0), [])
    plain = sample(*arguments, *how)
    torch.testing.assert_close(plain, noise - (-1 + 3 * 2))
    torch.testing.assert_close(sample(*arguments, *how, projection=PLAIN), plain)
    once, again = (sample(*arguments, *how, projection=Projection(0.0, 2.5, -0.5)) for _ in range(2))
    assert torch.equal(once, again)
    torch.testing.assert_close(once, noise - 1)  # c − u lies along c here, and nothing of it is left


def test_several_guided_parts_are_refused() -> None:
    condition = of_ids(torch.zeros(2, dtype=torch.long), 1)
    with pytest.raises(AssertionError, match="one name"):
        guided_predictor(OfClasses(), condition, {"a": 1.0, "b": 2.0}, torch.float32, projection=PLAIN)
