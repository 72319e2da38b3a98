"""The files that hold features of real images."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from urepa.core.types import Tokens
from urepa.evaluation.measures.image_distances_math import FeatureSet, real_features


def features(seed: int = 0) -> FeatureSet:
    found = FeatureSet(4)
    found.add(np.random.default_rng(seed).normal(size=(6, 3)))
    return found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    features().save(tmp_path / "features.safetensors", "facts")
    return tmp_path / "features.safetensors"


def test_a_file_gives_back_what_was_saved(file: Path) -> None:
    found, saved = FeatureSet.load(file, 4, "facts"), features()
    assert found.count == 6
    np.testing.assert_array_equal(found.rows_nD, saved.rows_nD)
    np.testing.assert_array_equal(found.moments.mean_D, saved.moments.mean_D)
    np.testing.assert_array_equal(found.moments.scatter_DD, saved.moments.scatter_DD)


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-8])


def changed_by_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


def without_rows(file: Path) -> None:
    save_file({name: tensor for name, tensor in load_file(file).items() if name != "rows"}, file)


def of_other_facts(file: Path) -> None:
    features().save(file, "other facts")


@pytest.mark.parametrize("spoil", [cut_short, changed_by_a_bit, without_rows, of_other_facts])
def test_a_spoilt_or_foreign_file_is_named_and_not_used(
    spoil: Callable[[Path], None], file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(file)
    assert FeatureSet.load(file, 4, "facts").count == 0
    assert f"warning: {file} is not used and computed again" in capsys.readouterr().out


def test_a_file_of_an_earlier_version_is_used(file: Path) -> None:
    save_file(load_file(file), file)  # without metadata
    assert FeatureSet.load(file, 4, "facts").count == 6


class Counting:
    """An encoder of means, which counts the images that it sees."""

    def __init__(self) -> None:
        self.seen = 0

    def manifest(self) -> dict[str, Any]:
        return {"family": "means"}

    def weights_sha256(self) -> str:
        return "none"

    def tokens(self, rgb_B3SS: torch.Tensor) -> Tokens:
        self.seen += len(rgb_B3SS)
        return Tokens(rgb_B3SS.mean((2, 3))[:, None], (1, 1))


def test_of_two_evaluations_at_once_one_computes(tmp_path: Path) -> None:
    (tmp_path / "latents").mkdir()
    (tmp_path / "latents" / "mark").write_text("")
    images = torch.rand(300, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    latents = SimpleNamespace(mark=tmp_path / "latents" / "mark", folder=tmp_path / "latents", manifest={})
    cache = SimpleNamespace(latents=latents, x0=lambda part: images[[int(s.sample_id) for s in part]])
    track = SimpleNamespace(autoencoder=None, to_rgb=lambda x0: x0)
    context: Any = SimpleNamespace(cache=cache, track=track, device=torch.device("cpu"))
    samples: Any = [SimpleNamespace(sample_id=str(i)) for i in range(300)]
    encoders, found = [Counting() for _ in range(3)], {}

    def evaluate(i: int) -> None:
        found[i] = real_features(context, {"means": encoders[i]}, samples, 5)["means"]

    threads = [threading.Thread(target=evaluate, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(encoder.seen for encoder in encoders) == [0, 0, 300]
    for own in found.values():
        np.testing.assert_array_equal(own.moments.mean_D, found[0].moments.mean_D)
