"""Declarations of evaluations, generated images and encoders: built at a small size, and checked for all methods that
other code calls."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from urepa.cli import CONF
from urepa.config.declared import declaration_of
from urepa.config.parts import KINDS, PACKAGES, networks, parts_of, settings_that_are, target_of
from urepa.core.declared_keys import INTERVAL, SAMPLER_STEPS, TAP, TIME
from urepa.core.descriptions import EvaluatedRun
from urepa.core.errors import UserError
from urepa.core.evaluation_protocols import Metric, evaluation_description, metrics_declared_by
from urepa.core.types import Tokens
from urepa.evaluation.context import Context
from urepa.evaluation.encoders.cifar_cnn_net import Classifier
from urepa.evaluation.encoders.inception_net import InceptionV3
from urepa.reports.comparison.metric_columns import is_beside, is_reference, metric_of, reference_label
from urepa.training.assembly import build_part, load_modules

Compose = Callable[..., dict[str, Any]]
OF_FILES = sorted(file.stem for file in (Path(CONF) / "evaluation").glob("*.yaml") if file.stem != "none")
RUN = EvaluatedRun(num_classes=10, sampler="ddim", is_aligned=True)


@pytest.fixture(scope="module")
def composed(compose: Compose) -> list[dict[str, Any]]:
    """Every option of conf/evaluation."""
    return [compose(f"evaluation={name}")["evaluation"] for name in OF_FILES]


def parts(composed: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    """The settings of every part of a kind in conf/evaluation, by class."""
    found = {}
    for evaluation in deepcopy(composed):
        for _, part, schema in parts_of(evaluation):
            if schema in KINDS[kind].values():
                found[target_of(schema)] = part
    return found


def classes(kind: str) -> Iterator[Any]:
    return (pytest.param(schema, id=name) for name, schema in KINDS[kind].items())


@pytest.mark.slow
def test_conf_has_a_choice_of_each(composed: list[dict[str, Any]]) -> None:
    for kind in ("evaluation", "images", "encoder"):
        assert parts(composed, kind).keys() == {target_of(schema) for schema in KINDS[kind].values()}


@pytest.mark.parametrize("schema", classes("evaluation"))
def test_an_evaluation_is_what_the_protocol_says(composed: list[dict[str, Any]], schema: type) -> None:
    declared = declaration_of(parts(composed, "evaluation")[target_of(schema)])
    assert isinstance(declared, schema)
    text = evaluation_description(declared, RUN)
    assert text is not None
    assert text.endswith(".")
    assert text[0].isupper()
    metrics = metrics_declared_by(schema)
    assert metrics
    for metric in metrics:
        key = metric.key.replace("{}", "some_name")
        assert re.fullmatch(r"final(/[\w.]+){1,2}", key)
        assert metric.better in ("↑", "↓", "")
        assert ("{}" in metric.key) == ("{}" in metric.label)
        found = metric_of(key)
        assert isinstance(found, Metric)
        assert (found.key, found.label) == (key, metric.label.replace("{}", "some_name"))
        assert not is_beside(key)
        for reference in metric.beside:
            beside = reference.key.replace("{}", "some_name")
            assert is_reference(beside)
            assert "{}" not in reference_label(beside)


def test_a_column_belongs_to_one_evaluation() -> None:
    keys = [metric.key for schema in KINDS["evaluation"].values() for metric in metrics_declared_by(schema)]
    assert len(keys) == len(set(keys)) > 40


@pytest.fixture
def seen(context: Context, compose: Compose, small_run: list[str]) -> Context:
    """The small model with its track."""
    return replace(context, track=build_part(compose(*small_run)["data"]))


@pytest.mark.slow
@pytest.mark.parametrize("schema", classes("evaluation"))
def test_an_evaluation_measures_what_it_declares(
    seen: Context, composed: list[dict[str, Any]], schema: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the small model with very few images; evaluations that need weights or a folder report that."""
    from urepa.evaluation import attention

    monkeypatch.setattr(attention, "STEPS", 2)
    small = {"per_class": 1, "max_classes": 2, "sampler_steps": 2, "train_images": 20, "test_images": 10, "knn": 1}
    small |= {
        "k": 1,
        "neighbours": 2,
        "subset": 4,
        "kid_subsets": 1,
        "kid_subset_size": 3,
        "splits": 2,
        "timesteps": [],
        "reference_images": None,
    }
    part = dict(parts(composed, "evaluation")[target_of(schema)])
    part |= {key: value for key, value in small.items() if key in part}
    if "images" in part:
        few = {"count": 4, "steps": 2}
        part["images"] = part["images"] | few if isinstance(part["images"], dict) else 12
    if "encoders" in part:
        part["encoders"] = {"pixels": {"_target_": "urepa.evaluation.encoders.pixels.Pixels", "grid": 2}}
    if "tap" in part:
        part |= {"tap": "mid", "timestep": 100}
    evaluation = declaration_of(part)
    if (needs := NEEDS.get(schema.__name__)) is not None:
        with pytest.raises(UserError, match=needs):
            evaluation(seen)
        return
    found = evaluation(seen)
    assert found
    for key in found:
        assert metric_of(key) is not None or is_beside(key), key


NO_CODES = "this run's backbone does not encode images as codes"
NO_IMAGE = "the conditions of this run have no image"
NEEDS = {
    "ImageReconstruction": NO_IMAGE,
    "ImageSwap": NO_IMAGE,
    "CaptionChange": NO_IMAGE,
    "TextOnly": NO_IMAGE,
    "AttentionMass": "no cross-attention to a caption and an image",
    "Reconstruction": NO_CODES,
    "CodeUsage": NO_CODES,
    "TokenClasses": NO_CODES,
    "Elsewhere": "name the run whose data are used",
    "Dense": "give evaluation.dense.folder=FOLDER",
    "InceptionScore": "FID and the Inception Score need pt_inception",
    "Classified": "cifar_cnn needs a classifier of the track",
    "ClipScore": "class_names=imagenet has 1000 names; this run has 10",
}


@pytest.mark.fast(1)
@pytest.mark.parametrize("schema", classes("images"))
def test_images_are_what_the_protocol_says(seen: Context, composed: list[dict[str, Any]], schema: type) -> None:
    images = declaration_of_images(parts(composed, "images")[target_of(schema)] | {"count": 5, "steps": 2})
    batches = list(images.rgb(seen))
    assert sum(len(ids) for ids, _ in batches) == images.count == 5
    for ids, rgb in batches:
        assert rgb.shape == (len(ids), 3, *seen.track.image_shape[1:])
        torch.testing.assert_close(rgb * 255, (rgb * 255).round())
    assert images.description(RUN).startswith("5 by DDIM in 2 steps")


def declaration_of_images(part: dict[str, Any]) -> Any:
    schema = next(schema for schema in KINDS["images"].values() if target_of(schema) == part["_target_"])
    return schema(**part)


@pytest.mark.slow
@pytest.mark.parametrize("schema", classes("encoder"))
def test_an_encoder_is_what_the_protocol_says(composed: list[dict[str, Any]], tmp_path: Path, schema: type) -> None:
    part = dict(parts(composed, "encoder")[target_of(schema)])
    if "weights" in part:
        part["weights"] = str(tmp_path / "weights.safetensors")
        write_weights(schema.__name__, tmp_path / "weights.safetensors")
    network = declaration_of(part).build()
    assert all(isinstance(value, str | int | float | list) for value in network.manifest().values())
    assert network.weights_sha256() == "none" or len(network.weights_sha256()) == 64
    tokens = network.tokens(torch.rand(2, 3, 9, 7))
    assert isinstance(tokens, Tokens)
    assert tokens.x_BND.shape[:2] == (2, tokens.grid[0] * tokens.grid[1])
    assert not tokens.x_BND.requires_grad


def write_weights(name: str, file: Path) -> None:
    from safetensors.torch import save_file

    from urepa.evaluation.classifier_file import as_metadata

    stated = as_metadata({"accuracy": 0.5, "classes": 3, "image_size": 8})
    network = InceptionV3() if name == "Inception" else Classifier(3)
    save_file(network.state_dict(), file, metadata=stated)


@pytest.mark.slow
def test_they_load_without_torch_and_a_run_loads_what_they_measure_with(compose: Compose) -> None:
    code = "import sys; from urepa.config.parts import KINDS; assert KINDS['encoder'] and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    load_modules(compose("evaluation=generation"))
    for kind in ("evaluation", "images", "encoder"):
        assert all(name in sys.modules for name in networks(PACKAGES[kind]))


def test_settings_declare_their_meaning_for_a_run(compose: Compose) -> None:
    """Also settings of parts inside an evaluation, by their full keys."""
    config = compose("evaluation=[knn,digits,generation]")

    def found(is_a: str) -> dict[str, Any]:
        return dict(settings_that_are(is_a, config["evaluation"], "evaluation"))

    assert found(TAP) == {"evaluation.knn.tap": "mid"}
    assert found(TIME) == {"evaluation.knn.timestep": 500, "evaluation.knn.timesteps": []}
    steps = {"evaluation.samples.sampler_steps": 25, "evaluation.generation.images.steps": 25}
    assert found(SAMPLER_STEPS) == steps
    assert found(INTERVAL) == {"evaluation.generation.images.interval": [0.0, 1.0]}
