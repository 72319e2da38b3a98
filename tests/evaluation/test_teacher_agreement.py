"""The `alignment` evaluation, compared with values computed by hand from the model's own output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from urepa.core.errors import UserError
from urepa.evaluation.context import Context
from urepa.evaluation.features import chunks, held_out_samples, subset
from urepa.evaluation.measures.teacher_alignment import TeacherAlignment
from urepa.evaluation.similarity import cknna, linear_cka

SETTINGS: dict[str, Any] = {"tap": "mid", "timestep": 500, "timesteps": [900], "neighbours": 3, "images": 12}


def off_diagonal(x_ND: Tensor) -> np.ndarray:
    """Cosines of all pairs of different rows, with numpy."""
    unit = x_ND.double().numpy() / np.linalg.norm(x_ND.double().numpy(), axis=1, keepdims=True)
    return (unit @ unit.T)[~np.eye(len(unit), dtype=bool)]


def nearest(x_ND: Tensor) -> np.ndarray:
    rows = off_diagonal(x_ND).reshape(len(x_ND), -1)
    return np.argsort(-rows, axis=1)[:, :3]


@pytest.mark.slow
def test_values_are_those_of_the_models_output(make_context: Callable[..., Context]) -> None:
    context = make_context("+loss.taps.dec_first=1.0")
    found = TeacherAlignment(**SETTINGS)(context)
    samples = subset(held_out_samples(context), 12)
    teacher = context.cache.teacher_BND(samples)
    constant = context.cache.mean_token()
    assert teacher is not None
    assert constant is not None
    teacher = teacher.float()
    for tap, t, label in (
        ("mid", 500, "{}"),
        ("mid", 500, "{}_by_t/mid/0500"),
        ("mid", 900, "{}_by_t/mid/0900"),
        ("dec_first", 500, "{}/dec_first"),
        ("dec_first", 900, "{}_by_t/dec_first/0900"),
    ):
        (chunk,) = chunks(context, samples, (tap,), t)
        head = chunk.heads[tap].x_BND
        unit = F.normalize(head.mean(1), dim=-1), F.normalize(F.normalize(teacher, dim=-1).mean(1), dim=-1)
        cosine = F.cosine_similarity(head, teacher, dim=-1).mean().item()
        by_chance = F.cosine_similarity(constant.expand_as(teacher), teacher, dim=-1).mean().item()
        shared = [len({*a} & {*b}) for a, b in zip(*map(nearest, unit), strict=True)]
        pooled = chunk.taps[tap].x_BND.mean(1), teacher.mean(1)
        expected = {
            "token_cosine": cosine,
            "token_cosine_above_constant": cosine - by_chance,
            "similarity_mae": np.abs(off_diagonal(unit[0]) - off_diagonal(unit[1])).mean(),
            "neighbour_recall": sum(shared) / 36,
            "cka": linear_cka(*pooled),
            "cknna": cknna(*pooled, 3),
        }
        for name, value in expected.items():
            assert found[f"final/{label.format(name)}"] == pytest.approx(value, abs=1e-5), (name, label)
    assert found["final/untrained_cka"] == pytest.approx(found["final/cka"]), "this context has not been trained"
    assert (context.folder / "evaluation" / "alignment_step_00000000.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_heads_are_measured_by_what_the_loss_compares_them_with(make_context: Callable[..., Context]) -> None:
    context = make_context("loss.spatial_norm=0.8", "loss.manifold_weight=0")
    found = TeacherAlignment(**SETTINGS | {"timesteps": []})(context)
    samples = subset(held_out_samples(context), 12)
    teacher = context.cache.teacher_BND(samples)
    assert teacher is not None
    teacher = teacher.float()
    mean, deviation = teacher.mean(1, keepdim=True), teacher.std(1, keepdim=True)
    target = (teacher - 0.8 * mean) / (deviation + 1e-6)
    (chunk,) = chunks(context, samples, ("mid",), 500)
    head = chunk.heads["mid"].x_BND
    unit = F.normalize(head.mean(1), dim=-1), F.normalize(F.normalize(target, dim=-1).mean(1), dim=-1)
    shared = [len({*a} & {*b}) for a, b in zip(*map(nearest, unit), strict=True)]
    expected = {
        "token_cosine": F.cosine_similarity(head, target, dim=-1).mean().item(),
        "similarity_mae": np.abs(off_diagonal(unit[0]) - off_diagonal(unit[1])).mean(),
        "neighbour_recall": sum(shared) / 36,
        "cka": linear_cka(chunk.taps["mid"].x_BND.mean(1), mean[:, 0]),
        "cknna": cknna(chunk.taps["mid"].x_BND.mean(1), mean[:, 0], 3),
    }
    assert {name for name in found if "untrained" not in name} == {f"final/{name}" for name in expected}
    assert {name: found[f"final/{name}"] for name in expected} == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_the_floor_is_the_untrained_models(context: Context, make_context: Callable[..., Context]) -> None:
    other = make_context("seed=1")
    found = TeacherAlignment(**SETTINGS)(replace(other, untrained=lambda: context.model))
    assert found["final/untrained_cka"] != pytest.approx(found["final/cka"], abs=1e-6)
    first = TeacherAlignment(**SETTINGS)(replace(other, model=context.model))
    assert found["final/untrained_cka"] == pytest.approx(first["final/cka"])


@pytest.mark.slow
@pytest.mark.parametrize("whole", [0, 1])
def test_whole_numbers_are_times_of_a_flow(whole: int, trainer_of: Any, small_sit: list[str], tmp_path: Path) -> None:
    trainer = trainer_of(*small_sit)
    trainer.model.eval()
    parts = {"model": trainer.model, "objective": trainer.objective, "loss": trainer.loss, "track": None}
    context = Context(
        **parts,
        cache=trainer.reader.cache,
        folder=tmp_path,
        device=torch.device("cpu"),
        seed=0,
        step=0,
        untrained=lambda: trainer.model,
    )
    (tap,) = trainer.model.taps
    settings = SETTINGS | {"tap": tap, "timestep": 0.5}
    found = TeacherAlignment(**settings | {"timesteps": [whole, 0.5]})(context)
    assert found == TeacherAlignment(**settings | {"timesteps": [float(whole)]})(context)
    assert f"final/cka_by_t/{tap}/{whole}.000" in found
    with pytest.raises(UserError, match="2 is not a time of this run's objective"):
        TeacherAlignment(**settings | {"timesteps": [2]})(context)


@pytest.mark.slow
def test_shuffled_labels_change_no_value(context: Context) -> None:
    shuffled = {
        name: [replace(s, class_id=(s.class_id + 3) % 10) for s in v] for name, v in context.cache.splits.items()
    }
    other = replace(context, cache=replace(context.cache, splits=shuffled))
    assert TeacherAlignment(**SETTINGS)(context) == TeacherAlignment(**SETTINGS)(other)


@pytest.mark.slow
def test_mistakes_are_named(make_context: Callable[..., Context]) -> None:
    context = make_context()
    for changes, why in (
        ({"tap": "enc_last"}, "no head on 'enc_last'; it has mid"),
        ({"neighbours": 12}, "12 held-out images are too few for neighbours=12: give neighbours=11$"),
        ({"timesteps": [1000]}, "1000 is not a time"),
    ):
        with pytest.raises(UserError, match=why):
            TeacherAlignment(**(SETTINGS | changes))(context)
    with pytest.raises(UserError, match="no teacher tokens to compare with .loss=none."):
        TeacherAlignment(**SETTINGS)(make_context("loss=none"))
