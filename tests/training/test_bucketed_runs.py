"""Runs over buckets: their first lines, their evaluations, and the identity of their data."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aspects import bucketed, write_aspects
from PIL import Image

from urepa.config.declared import declaration_of
from urepa.core.errors import UserError
from urepa.runs.run_folder import RunFolder
from urepa.training import provenance
from urepa.training.assembly import build_part
from urepa.training.first_lines import samples

Compose = Callable[..., dict[str, Any]]
CODE = {"git_commit": "a", "code_state": "b", "code_digest": "c", "numerics": 1}


def opened(config: dict[str, Any]) -> Any:
    return build_part(config["data"]).open(build_part(config["teacher"]))


@pytest.mark.slow
def test_a_run_over_buckets(trainer_of: Callable[..., Any], compose: Compose, tmp_path: Path) -> None:
    """The first lines and the records of the caches, with one build for all."""
    images, root = write_aspects(tmp_path / "images", 10, 8), tmp_path / "data"
    config = compose(*bucketed(images, root))
    track, teacher = declaration_of(config["data"]), declaration_of(config["teacher"])
    assert not track.has_latents()
    trainer = trainer_of(*bucketed(images, root, "trainer.max_steps=12"))
    counts = [len(bucket.splits["train"]) for bucket in trainer.reader.cache.buckets]
    assert sum(counts) == 26
    steps = sum(n // 4 for n in counts)
    assert samples(trainer) == (
        f"26 training, 6 validation, 4 test; 12 steps of 4 are {12 / steps:.3g} epochs; "
        f"training images {counts[0]} of 64x64, {counts[1]} of 32x64"
    )
    assert track.has_latents()
    assert track.has_tokens(teacher)
    assert not track.has_tokens(declaration_of(compose(*bucketed(images, root, "teacher.grid=[4,4]"))["teacher"]))
    with pytest.raises(UserError, match=r"^in bucket \d\dx64: evaluation.knn: "):
        trainer_of(*bucketed(images, root, "evaluation=knn", "evaluation.knn.train_images=20"))


@pytest.mark.slow
def test_a_run_is_of_the_images_of_all_its_buckets(
    compose: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = write_aspects(tmp_path / "images", 10, 8)
    config = compose(*bucketed(images, tmp_path / "data"))
    cache = opened(config)
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    provenance.begin(folder, config, cache, CODE, 0)
    content = cache.content()
    cache.close()

    shutil.copytree(tmp_path / "data", tmp_path / "elsewhere")
    moved = compose(*bucketed(images, tmp_path / "elsewhere"))
    cache = opened(moved)
    assert cache.content() == content
    assert provenance.check_data(folder.path, moved, cache)
    cache.close()

    (lying,) = [path for path in images.glob("a/*.png") if path.name == "a017.png"]  # 40x80
    Image.fromarray(np.zeros((40, 80, 3), dtype=np.uint8)).save(lying)
    provenance.check_images(build_part(config["data"]), is_new=False)
    assert "is not what the caches in" in capsys.readouterr().out
    with pytest.raises(UserError, match="data"):
        provenance.check_images(build_part(config["data"]), is_new=True)

    changed = compose(*bucketed(images, tmp_path / "again"))
    cache = opened(changed)
    assert cache.content()["samples"] == content["samples"]
    with pytest.raises(UserError, match=r"trained on other data \(latents: "):
        provenance.begin(folder, changed, cache, CODE, 4)
    cache.close()


def test_a_bucket_without_images_is_refused_before_anything_is_made(compose: Compose, tmp_path: Path) -> None:
    images, root = write_aspects(tmp_path / "images", 10, 8), tmp_path / "data"
    config = compose(*bucketed(images, root, buckets="[[64,64],[32,64],[64,32]]"))
    with pytest.raises(UserError, match=r"nearest in aspect to 64x32 .* give data.buckets='\[\[64,64\],\[32,64\]\]'"):
        opened(config)
    assert not root.exists()
