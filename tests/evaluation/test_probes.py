"""The tap is read under the null condition: a class condition would leak the label."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from class_ids import of_ids
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from urepa.core import random_draws
from urepa.core.errors import UserError
from urepa.evaluation import attention
from urepa.evaluation.context import Context
from urepa.evaluation.features import held_out_samples, labels_of, pool_chunks, subset, tap_pool
from urepa.evaluation.measures.knn import Knn
from urepa.evaluation.measures.linear_probe import LinearProbe
from urepa.evaluation.measures.tap_probe import TapProbe


def by_hand(context: Context, samples: list[Any], ids: list[int]) -> np.ndarray:
    """The mid tap at t = 100 under these class ids."""
    x0 = context.cache.x0(samples)
    rngs = [random_draws.generator(random_draws.digest64("probe", s.sample_id), "noise") for s in samples]
    noise = torch.stack([random_draws.normal(tuple(x0.shape[1:]), rng) for rng in rngs])
    t_B = torch.full((len(samples),), 100)
    with torch.no_grad():
        condition = of_ids(torch.tensor(ids), context.cache.num_classes)
        denoised: Any = context.model.backbone(context.objective.corrupt(x0, noise, t_B), t_B, condition, taps=("mid",))
    return denoised.features["mid"].x_BND.mean(1).numpy()


def mid_taps(context: Context, samples: list[Any]) -> np.ndarray:
    return pool_chunks(context, samples, ("mid",), 100, {"tap": tap_pool("mid")})["tap"]


@pytest.mark.slow
def test_features_are_those_of_the_null_condition(context: Context) -> None:
    samples = context.cache.splits["train"][:12]
    features = mid_taps(context, samples)
    null = [context.cache.num_classes] * len(samples)
    assert np.array_equal(features, by_hand(context, samples, null))
    classes = [s.class_id for s in samples]
    assert not np.allclose(features, by_hand(context, samples, classes), atol=1e-3), "the condition reaches the tap"


@pytest.mark.slow
def test_shuffled_labels_change_no_feature(context: Context) -> None:
    samples = context.cache.splits["train"]
    shuffled = [replace(s, class_id=(s.class_id + 1) % context.cache.num_classes) for s in samples]
    assert np.array_equal(mid_taps(context, samples), mid_taps(context, shuffled))


@pytest.mark.slow
def test_wrong_labels_lower_the_probes_score(context: Context) -> None:
    probe = TapProbe(tap="mid", timestep=100, knn=1, train_images=40, test_images=20)
    right = probe(context)
    test = [replace(s, class_id=(s.class_id + 1) % 10) for s in context.cache.splits["test"]]
    wrong = probe(replace(context, cache=replace(context.cache, splits=context.cache.splits | {"test": test})))
    assert right["final/pixel_knn"] > 0.5 > wrong["final/pixel_knn"]


READ: dict[str, Any] = {"tap": "mid", "timestep": 500, "timesteps": [], "train_images": 40, "test_images": 20}


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "STEPS", 5)


def rotated(context: Context) -> Context:
    """The same samples with other labels for all."""
    splits = {
        name: [replace(s, class_id=(s.class_id * 7 + 3) % 10) for s in part]
        for name, part in context.cache.splits.items()
    }
    return replace(context, cache=replace(context.cache, splits=splits))


@pytest.mark.slow
def test_the_quick_probe_equals_scikit_learns(context: Context) -> None:
    found = TapProbe(tap="mid", timestep=100, knn=3, train_images=30, test_images=15)(context)
    parts = subset(context.cache.splits["train"], 30), subset(context.cache.splits["test"], 15)
    train, test = (by_hand(context, part, [context.cache.num_classes] * len(part)) for part in parts)
    labels = [labels_of(part) for part in parts]
    knn = KNeighborsClassifier(3, metric="cosine").fit(train, labels[0])
    assert found["final/tap_knn"] == knn.score(test, labels[1])
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000)).fit(train, labels[0])
    assert found["final/tap_linear_probe"] == probe.score(test, labels[1])
    tokens = [context.cache.teacher_BND(part) for part in parts]
    train, test = (t.float().mean(1).numpy() for t in tokens if t is not None)
    knn = KNeighborsClassifier(3, metric="cosine").fit(train, labels[0])
    assert found["final/teacher_knn"] == knn.score(test, labels[1])


@pytest.mark.slow
@pytest.mark.usefixtures("few_steps")
@pytest.mark.parametrize(("reading", "name"), [(Knn(**READ, k=3), "knn"), (LinearProbe(**READ), "linear_probe")])
def test_every_source_and_pooling_is_read(context: Context, reading: Any, name: str) -> None:
    found = reading(context)
    sources = {"tap", "head", "teacher", "untrained_tap", "untrained_head"}
    names = {f"{s}{pool}{top}" for s in sources for pool in ("", "_attention") for top in ("", "_top5")}
    assert found.keys() == {f"final/{name}/{n}" for n in names}
    assert all(found[f"final/{name}/{s}"] <= found[f"final/{name}/{s}_top5"] for s in sources)
    assert found[f"final/{name}/untrained_tap"] == found[f"final/{name}/tap"], "this context has not been trained"
    train, test = context.cache.splits["train"], held_out_samples(context)
    pool = {"tap": tap_pool("mid")}
    features = [pool_chunks(context, part, ("mid",), 500, pool)["tap"] for part in (train, test)]
    reader: Any = (
        KNeighborsClassifier(3, metric="cosine")
        if name == "knn"
        else make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    )
    score = reader.fit(features[0], labels_of(train)).score(features[1], labels_of(test))
    assert found[f"final/{name}/tap"] == score
    assert list(context.folder.iterdir()) == [context.folder / "run0"], "no token stays on the disk"


@pytest.mark.slow
@pytest.mark.usefixtures("few_steps")
def test_a_sweep_over_t_adds_curves(context: Context) -> None:
    found = Knn(**READ | {"timesteps": [100, 500]}, k=3)(context)
    assert found["final/knn/tap_by_t/0500"] == found["final/knn/tap"]
    at_100 = Knn(**READ | {"timestep": 100}, k=3)(context)
    for what in ("tap", "head", "tap_top5", "head_attention"):
        assert found[f"final/knn/{what}_by_t/0100"] == at_100[f"final/knn/{what}"]
    assert not [key for key in found if "by_t" in key and ("teacher" in key or "untrained" in key)]
    assert not [key for key in at_100 if "by_t" in key]


@pytest.mark.slow
@pytest.mark.usefixtures("few_steps")
def test_the_floor_is_the_untrained_models(context: Context, make_context: Callable[..., Context]) -> None:
    other = make_context("seed=1", "data.limit=40")
    found = LinearProbe(**READ)(replace(other, untrained=lambda: context.model))
    first = LinearProbe(**READ)(replace(other, model=context.model))
    for what in ("tap", "head", "tap_attention", "head_attention"):
        assert found[f"final/linear_probe/untrained_{what}"] == first[f"final/linear_probe/{what}"]


@pytest.mark.usefixtures("few_steps")
def test_a_run_without_a_teacher_has_the_tap_and_its_floor(make_context: Callable[..., Context]) -> None:
    found = Knn(**READ, k=3)(make_context("loss=none"))
    ends = ("", "_top5", "_attention", "_attention_top5")
    assert found.keys() == {f"final/knn/{what}{end}" for what in ("tap", "untrained_tap") for end in ends}


@pytest.mark.slow
@pytest.mark.usefixtures("few_steps")
def test_only_the_readers_use_labels(context: Context) -> None:
    """A permutation of labels that is the same everywhere changes no neighbour, and so no mean-pooled score."""
    found, other = Knn(**READ, k=1)(context), Knn(**READ, k=1)(rotated(context))
    for what in ("tap", "head", "teacher"):
        assert found[f"final/knn/{what}"] == other[f"final/knn/{what}"]


def test_more_neighbours_than_images_are_refused(context: Context) -> None:
    with pytest.raises(UserError, match="40 training images are too few for k=41: give k=40$"):
        Knn(**READ | {"train_images": 1000}, k=41)(context)
