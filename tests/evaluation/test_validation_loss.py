"""Validation, compared with a plain recomputation for all sizes of groups and their remainder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from urepa.core.errors import UserError
from urepa.method.losses import loss_math

Build = Callable[..., Any]


def by_hand(trainer: Any, group: int, lam: float) -> dict[str, float]:
    """The same values, sample by sample."""
    reader, objective = trainer.validation.reader, trainer.objective
    batches = [reader.read(i) for i in range(len(reader.groups))]
    diffusion, token, x0_error, manifold, zero = [], [], [], [], []
    with torch.no_grad():
        for batch in batches:
            x_t = objective.corrupt(batch.x0, batch.noise, batch.t_B)
            out = trainer.model.eval()(x_t, batch.t_B, batch.condition, None, batch.grids)
            target = objective.target(batch.x0, batch.noise, batch.t_B)
            student, teacher = out.tokens["mid"].x_BND, batch.teacher_BND.float()
            diffusion += (out.prediction_RCHW - target).pow(2).flatten(1).mean(1).tolist()
            zero += target.pow(2).flatten(1).mean(1).tolist()
            token += (1 - torch.cosine_similarity(student, teacher, dim=-1)).mean(1).tolist()
            implied = objective.to_x0(x_t, out.prediction_RCHW, batch.t_B)
            x0_error += (implied - batch.x0).pow(2).flatten(1).mean(1).tolist()
            if len(batch.ids) == group:
                pair = loss_math.pool_tokens(student), loss_math.pool_tokens(teacher)
                manifold.append(float(loss_math.manifold_loss_sample(*pair)))
    mean = {
        k: sum(v) / len(v) for k, v in locals().items() if k in ("diffusion", "token", "x0_error", "manifold", "zero")
    }
    total = mean["diffusion"] + lam * (mean["token"] + 3.0 * mean["manifold"])
    return {
        "val/diffusion": mean["diffusion"],
        "val/token": mean["token"],
        "val/x0_error": mean["x0_error"],
        "val/manifold": mean["manifold"],
        "val/total": total,
        "floor/zero_predictor": mean["zero"],
    }


@pytest.mark.slow
@pytest.mark.parametrize("group", [10, 7, 19])  # 20 samples: no remainder, a remainder of 6, of a single sample
def test_validation_is_the_plain_mean_with_full_groups_manifolds(build_trainer: Build, group: int) -> None:
    trainer = build_trainer(f"trainer.validation_group={group}")
    measured = trainer.validation(trainer.model, step=2)
    for key, expected in by_hand(trainer, group, lam=0.25).items():
        assert measured[key] == pytest.approx(expected, rel=1e-5), key
    bins = [v for k, v in measured.items() if k.startswith("val/diffusion_by_t/")]
    assert 1 <= len(bins) <= 10


def test_a_group_larger_than_the_split_is_an_error(build_trainer: Build) -> None:
    with pytest.raises(UserError, match="validation_group=21 is more than the 20 validation samples"):
        build_trainer("trainer.validation_group=21")


def test_a_probe_of_a_missing_tap_is_refused_before_training(build_trainer: Build) -> None:
    with pytest.raises(UserError, match="no tap 'midd'"):
        build_trainer("evaluation=cifar10", "evaluation.probe.tap=midd")


@pytest.mark.slow
def test_validation_leaves_the_model_as_it_was(build_trainer: Build) -> None:
    trainer = build_trainer()
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    trainer.model.train()
    trainer.validate(2)
    assert trainer.model.training
    assert all(torch.equal(p, before[n]) for n, p in trainer.model.named_parameters())
