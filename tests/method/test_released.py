"""A loss that releases samples and times: its weights by hand, and which samples get gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from class_ids import of_ids
from torch import Tensor

from urepa.config.declared import declaration_of
from urepa.core.errors import UserError
from urepa.core.types import Batch, Tokens
from urepa.method.losses.released import Released
from urepa.method.objectives.flow_math import FlowMath
from urepa.method.schedules.constant import Constant
from urepa.method.step_schedules import time_power_at
from urepa.method.training_step import Aligned, step_terms

Build = Callable[..., Any]
OBJECTIVE = FlowMath("linear", "uniform")
SETTINGS: dict[str, Any] = {
    "lambda_max": 0.5,
    "warmup_steps": 2,
    "manifold_weight": 0.0,
    "level": "token",
    "taps": {"block_0": 1.0},
    "spike_threshold": float("inf"),
}


def loss_of(**changes: Any) -> Any:
    return Released(**(SETTINGS | changes)).build(schedule=Constant(), max_steps=12)


def tokens_at(cosines: list[float]) -> tuple[Tensor, Tensor]:
    """Student and teacher tokens [B,2,2], whose cosines are these for each sample."""
    teacher = torch.tensor([1.0, 0.0]).expand(len(cosines), 2, 2)
    c = torch.tensor(cosines)[:, None]
    student = torch.stack([c, (1 - c**2).sqrt()], dim=-1).expand(-1, 2, -1)
    return student.clone().requires_grad_(), teacher


class Fixed:
    """A model with given tokens and a prediction of 0."""

    def __init__(self, student: Tensor) -> None:
        self.student = student

    def __call__(self, x_t: Tensor, *_: Any) -> Aligned:
        tokens = Tokens(self.student, (1, 2))
        return Aligned(torch.zeros_like(x_t), {"block_0": tokens}, {"block_0": tokens})


def batch_of(teacher: Tensor, t_B: Tensor) -> Batch:
    x0, noise = (torch.randn(len(t_B), 1, 2, 2, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    ids, classes = [str(i) for i in range(len(t_B))], of_ids(torch.zeros(len(t_B), dtype=torch.long), 3)
    return Batch(ids, x0, noise, t_B, classes, {"": Tokens(teacher, (1, 2))})


def test_a_sample_that_is_similar_enough_has_no_term_and_no_gradient() -> None:
    cosines = [0.2, 0.49, 0.51, 0.9]
    student, teacher = tokens_at(cosines)
    loss = loss_of(release_cosine=0.5)
    batch = batch_of(teacher, torch.full((4,), 0.5))
    terms, _ = step_terms(Fixed(student), OBJECTIVE, loss, batch, 5, lambda x: x)  # type: ignore[arg-type]
    torch.testing.assert_close(terms.per_sample["token"], 1 - torch.tensor(cosines))
    assert terms.alignment is not None
    assert terms.alignment.item() == pytest.approx((0.8 + 0.51) / 4, rel=1e-5)
    diffusion = terms.per_sample["diffusion"].mean()
    torch.testing.assert_close(terms.total, diffusion + 0.5 * terms.alignment)
    (gradient,) = torch.autograd.grad(terms.total, student)
    assert (gradient.abs().sum((1, 2)) > 0).tolist() == [True, True, False, False]


def test_the_exponent_by_time_moves_from_the_warm_ups_end_to_the_last_update() -> None:
    loss = loss_of(time_power=1.0, time_power_end=3.0)
    powers = [time_power_at(loss, step) for step in (0, 2, 3, 11, 50)]
    assert powers == pytest.approx([1.0, 1.0, 1 + 2 / 9, 3.0, 3.0])
    assert time_power_at(loss_of(release_cosine=0.1, time_power=1.5), 7) == 1.5
    t_B = torch.tensor([0.1, 0.4, 0.8])
    student, teacher = tokens_at([0.3, 0.6, -0.2])
    for step, power in ((0, 1.0), (11, 3.0)):
        batch = batch_of(teacher, t_B)
        terms, _ = step_terms(Fixed(student), OBJECTIVE, loss, batch, step, lambda x: x)  # type: ignore[arg-type]
        # the mean of (1 - t)^p over uniform t is 1/(p + 1)
        expected = ((power + 1) * (1 - t_B) ** power * torch.tensor([0.7, 0.4, 1.2])).mean()
        assert terms.alignment is not None
        torch.testing.assert_close(terms.alignment.detach(), expected, rtol=2e-3, atol=0)


def test_settings_that_release_nothing_or_weigh_many_samples_are_refused(compose: Build) -> None:
    with pytest.raises(UserError, match=r"releases nothing: give loss\.release_cosine or loss\.time_power_end"):
        loss_of()
    with pytest.raises(UserError, match=r"give loss\.manifold_weight=0 with them"):
        loss_of(release_cosine=0.5, manifold_weight=1.0)
    declared = declaration_of(compose("+experiment=repa_cifar10_cpu", "loss=repa_early_released")["loss"])
    text = " ".join(str(b) for b in declared.description(schedule=Constant(), max_steps=10))
    assert "a mean cosine of 0.5 or more" in text
    both = loss_of(release_cosine=0.5, time_power_end=2.0)
    assert (both.release_cosine, both.time_power_end) == (0.5, 2.0)
