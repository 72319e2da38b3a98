"""What the tap says is read under the null condition: a class prompt would tell it the label."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from urepa import draws
from urepa.contracts import Condition
from urepa.evaluation.context import Context
from urepa.evaluation.probe import TapProbe, tap_features


@pytest.fixture
def context(build_trainer: Callable[..., Any], tmp_path: Path) -> Context:
    trainer = build_trainer()
    trainer.model.eval()
    parts = {"model": trainer.model, "objective": trainer.objective, "cache": trainer.reader.cache}
    return Context(**parts, track=None, folder=tmp_path, device=torch.device("cpu"), seed=0, step=0)


def by_hand(context: Context, samples: list[Any], ids: list[int]) -> np.ndarray:
    """The mid tap at t = 100 under these class ids."""
    x0 = context.cache.x0(samples)
    rngs = [draws.generator(draws.digest64("probe", s.sample_id), "noise") for s in samples]
    noise = torch.stack([draws.normal(tuple(x0.shape[1:]), rng) for rng in rngs])
    t_B = torch.full((len(samples),), 100)
    with torch.no_grad():
        condition = Condition(torch.tensor(ids), context.cache.null_id)
        denoised: Any = context.model.backbone(context.objective.corrupt(x0, noise, t_B), t_B, condition, taps=("mid",))
    return denoised.features["mid"].x_BND.mean(1).numpy()


def test_features_are_those_of_the_null_condition(context: Context) -> None:
    samples = context.cache.splits["train"][:12]
    features = tap_features(context, samples, "mid", 100)
    null = [context.cache.null_id] * len(samples)
    assert np.array_equal(features, by_hand(context, samples, null))
    classes = [s.class_id for s in samples]
    assert not np.allclose(features, by_hand(context, samples, classes), atol=1e-3), "the condition reaches the tap"


def test_shuffled_labels_change_no_feature(context: Context) -> None:
    samples = context.cache.splits["train"]
    shuffled = [replace(s, class_id=(s.class_id + 1) % context.cache.num_classes) for s in samples]
    assert np.array_equal(tap_features(context, samples, "mid", 100), tap_features(context, shuffled, "mid", 100))


def test_wrong_labels_cost_the_probe_its_score(context: Context) -> None:
    probe = TapProbe(tap="mid", timestep=100, knn=1, train_images=40, test_images=20)
    right = probe(context)
    test = [replace(s, class_id=(s.class_id + 1) % 10) for s in context.cache.splits["test"]]
    wrong = probe(replace(context, cache=replace(context.cache, splits=context.cache.splits | {"test": test})))
    assert right["final/pixel_knn"] > 0.5 > wrong["final/pixel_knn"]
