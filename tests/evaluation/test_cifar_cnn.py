"""The classifier of a track's classes: its training, its file, and its features as an encoder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from urepa.core import random_draws
from urepa.core.errors import UserError
from urepa.core.hashing import file_sha256
from urepa.evaluation.classifier_training import augment, fit, read_split, train_classifier
from urepa.evaluation.encoders.cifar_cnn_net import CifarCNNNetwork, Classifier
from urepa.evaluation.measures.image_distances_math import image_features


@pytest.fixture
def weights(make_track: Callable[..., Any], tmp_path: Path) -> Path:
    """The weights after one epoch on 24 images of 8x8 pixels."""
    train_classifier(make_track(), epochs=1, seed=0, out=tmp_path / "cnn.safetensors")
    return tmp_path / "cnn.safetensors"


def metadata(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as opened:
        return json.loads(opened.metadata()["cifar_cnn"])


def by_hand(file: Path, images_B3SS: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pooled features and logits, computed from the file's tensors alone."""
    tensors = load_file(file)
    x = images_B3SS * 2 - 1
    for stage, stride in enumerate((1, 2, 1, 2, 1)):
        x = F.conv2d(x, tensors[f"stages.{stage}.0.weight"], stride=stride, padding=1)
        mean, variance = (tensors[f"stages.{stage}.1.running_{what}"] for what in ("mean", "var"))
        scale, shift = (tensors[f"stages.{stage}.1.{what}"] for what in ("weight", "bias"))
        x = (x - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt()
        x = torch.relu(x * scale[:, None, None] + shift[:, None, None])
    features = x.flatten(2).mean(2)
    return features, features @ tensors["classes.weight"].T + tensors["classes.bias"]


def test_features_are_those_of_the_files_tensors(weights: Path) -> None:
    images = torch.rand(5, 3, 8, 8)
    encoder = CifarCNNNetwork(str(weights))
    tokens = encoder.tokens(images)
    assert (tokens.x_BND.shape, tokens.grid) == ((5, 1, 128), (1, 1))
    features, _ = by_hand(weights, images)
    torch.testing.assert_close(image_features(tokens), features, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        image_features(encoder.tokens(images[:1])), features[:1], atol=1e-5, rtol=1e-4
    )  # BN by itself
    assert not tokens.x_BND.requires_grad
    larger = F.interpolate(images, (16, 16), mode="bilinear", align_corners=False)
    resized = F.interpolate(larger, (8, 8), mode="bilinear", align_corners=False, antialias=True)
    expected, _ = by_hand(weights, resized)
    torch.testing.assert_close(image_features(encoder.tokens(larger)), expected, atol=1e-5, rtol=1e-4)


def test_its_layers_are_what_is_documented() -> None:
    network = Classifier(10)
    shapes = [tuple(p.shape) for name, p in network.named_parameters() if p.ndim == 4]
    assert shapes == [(32, 3, 3, 3), (64, 32, 3, 3), (64, 64, 3, 3), (128, 64, 3, 3), (128, 128, 3, 3)]
    assert network.stages(torch.rand(1, 3, 32, 32)).shape == (1, 128, 8, 8)
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_the_file_records_its_data_and_settings(
    weights: Path, make_track: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    told = metadata(weights)
    counts = {key: told[key] for key in ("train_images", "test_images", "classes", "image_size", "epochs", "seed")}
    assert counts == {
        "train_images": "30",
        "test_images": "6",
        "classes": "3",
        "image_size": "8",
        "epochs": "1",
        "seed": "0",
    }
    track = make_track()
    cache = track.open(None)
    test = cache.splits["test"]
    rgb = (track.to_rgb(cache.x0(test)) * 255).round() / 255
    right = (by_hand(weights, rgb)[1].argmax(1).numpy() == test.class_ids()).mean()
    cache.close()
    assert float(told["accuracy"]) == pytest.approx(right, abs=1e-6)
    capsys.readouterr()
    train_classifier(track, epochs=1, seed=0, out=weights)
    said = capsys.readouterr().out
    assert f"accuracy {right:.3f} on 6 test images; weights sha256 {file_sha256(weights)}" in said


def test_an_existing_classifier_is_not_trained_again_and_training_is_reproducible(
    weights: Path, make_track: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, age = weights.read_bytes(), weights.stat().st_mtime_ns
    capsys.readouterr()
    train_classifier(make_track(), epochs=1, seed=0, out=weights)
    assert "is there already, of these images and settings" in capsys.readouterr().out
    assert weights.stat().st_mtime_ns == age
    train_classifier(make_track(), epochs=1, seed=0, out=tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == before
    train_classifier(make_track(), epochs=1, seed=1, out=tmp_path / "other.safetensors")
    assert not torch.equal(*(load_file(f)["classes.weight"] for f in (weights, tmp_path / "other.safetensors")))


@pytest.mark.parametrize(
    ("changes", "epochs", "seed", "said"),
    [
        ({}, 2, 0, "epochs: 1 there, 2 here"),
        ({}, 1, 3, "seed: 0 there, 3 here"),
        ({"limit": 15}, 1, 0, "train_images: 30 there, 15 here"),
    ],
)
def test_a_path_with_another_classifier_is_refused(
    weights: Path, make_track: Callable[..., Any], changes: dict[str, Any], epochs: int, seed: int, said: str
) -> None:
    before = weights.read_bytes()
    with pytest.raises(UserError, match=f"is a classifier of other settings or images.*{said}.*give out=FILE"):
        train_classifier(make_track(**changes), epochs=epochs, seed=seed, out=weights)
    assert weights.read_bytes() == before


@pytest.mark.slow
def test_the_samples_digest_is_of_pixels_and_classes(make_track: Callable[..., Any], tmp_path: Path) -> None:
    """Whatever x0 is derived from them."""

    def digest(**changes: Any) -> str:
        track = make_track(root=str(tmp_path / str(sorted(changes.items()))), **changes)
        cache = track.open(None)
        found = read_split(track, cache, "train").digest
        cache.close()
        return found

    first = digest()
    assert digest(scale=2.0, unshuffle=1) == first
    assert digest(limit=15) != first


@pytest.mark.slow
def test_it_learns(make_track: Callable[..., Any]) -> None:
    """It memorises thirty images, where chance would classify ten correctly."""
    track = make_track()
    cache = track.open(None)
    train = read_split(track, cache, "train")
    cache.close()
    network = fit(train, 3, epochs=40, seed=0)
    images, classes = train.batch(slice(None))
    assert (network(images).argmax(1) == classes).float().mean() > 0.6


def test_augmentations_depend_on_the_images_address() -> None:
    images = torch.rand(40, 3, 8, 8)
    moved = augment(images, seed=5, step=7)
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (3, 3), (3, 3)), constant_values=0.5)
    seen = set()
    for i, image in enumerate(moved.numpy()):
        rng = random_draws.generator(5, "classifier/augmentation", 7, i)
        down, right, flipped = (int(v) for v in rng.integers(0, (7, 7, 2)))
        expected = padded[i, :, down : down + 8, right : right + 8]
        assert np.array_equal(image, expected[..., ::-1] if flipped else expected)
        seen.add((down, right, flipped))
    assert {d for d, _, _ in seen} == {r for _, r, _ in seen} == set(range(7))
    assert {f for _, _, f in seen} == {0, 1}
    assert torch.equal(augment(images[:4], 5, 7), moved[:4]), "whatever stands beside it"
    assert not torch.equal(augment(images, 5, 8), moved)


def test_a_missing_or_foreign_file_is_said(tmp_path: Path) -> None:
    missing = CifarCNNNetwork(str(tmp_path / "x.safetensors"))
    with pytest.raises(UserError, match=r"there is no .*x\.safetensors: .*make it with `python -m urepa.train_classif"):
        missing.weights_sha256()
    with pytest.raises(UserError, match="there is no"):
        missing.tokens(torch.rand(1, 3, 8, 8))
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(UserError, match="is not what `python -m urepa.train_classifier` writes"):
        CifarCNNNetwork(str(tmp_path / "foreign.safetensors")).tokens(torch.rand(1, 3, 8, 8))
    (tmp_path / "cut.safetensors").write_bytes(b"x" * 5)
    with pytest.raises(UserError, match="is not a complete safetensors file"):
        CifarCNNNetwork(str(tmp_path / "cut.safetensors")).tokens(torch.rand(1, 3, 8, 8))


@pytest.mark.parametrize("evaluation", ["cifar10_fd", "fashion_fd"])
def test_reports_rank_by_the_classifiers_distance(compose: Callable[..., dict[str, Any]], evaluation: str) -> None:
    """Columns of distances are in alphabetical order, and arms are ranked by the first one."""
    encoders = compose(f"evaluation={evaluation}")["evaluation"]["generation"]["encoders"]
    assert encoders[min(encoders)]["_target_"].endswith(".CifarCNN")
