"""The number of a track's classes, and their names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose as compose_root
from hydra import initialize_config_dir
from omegaconf.errors import InterpolationResolutionError

from urepa.cli import CONF, prepare
from urepa.core.errors import UserError
from urepa.data.lists.classes import names_beside, pixel_folder, read_names
from urepa.runs.run_folder import to_plain

Compose = Callable[..., dict[str, Any]]
SMALL = ("data.image_size=8", "data.unshuffle=2", "data.validation_images=6", "data.test_images=6")


def test_classes_are_counted_where_no_number_is_given(compose: Compose, images: Path) -> None:
    assert compose("data=folder", f"data.images={images}")["data"]["num_classes"] == 3
    assert compose("data=folder", f"data.images={images / 'train'}")["data"]["num_classes"] == 3
    assert compose("data=folder", f"data.images={images}", "data.num_classes=7")["data"]["num_classes"] == 7


def test_finished_caches_decide_the_number_of_classes(
    compose: Compose, images: Path, make_track: Any, tmp_path: Path
) -> None:
    """A run continues with other images beside it, or with none."""
    root = Path(shutil.copytree(images, tmp_path / "photos"))
    track = make_track(images=str(root))
    track.open(None).close()
    command = ("data=folder", f"data.images={root}", f"data.root={track.folder.parent}", *SMALL)
    for split in ("train", "test"):
        shutil.copytree(root / split / "cat", root / split / "fox")
    assert compose(*command)["data"]["num_classes"] == 3
    shutil.rmtree(root)
    config = compose(*command)
    assert config["data"]["num_classes"] == 3
    asked = {key: config["data"][key] for key in ("root", "source", "images", "limit", "channels")}
    assert pixel_folder(**asked, sizes=["8"], validation_images=6, test_images=6) == track.folder


@pytest.mark.fast(1)
@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ((), "data.images=FOLDER with a folder per class in it, or how many classes there are, data.num_classes=N"),
        (("data.images=nowhere",), "data.images=nowhere is not a folder here, so its classes cannot be counted; give"),
        (
            ("data.images=x", "data.source=parquet"),
            "the classes of data.source=parquet cannot be counted; give data.num",
        ),
    ],
)
def test_an_unknown_number_of_classes_must_be_given(overrides: tuple[str, ...], words: str) -> None:
    prepare()
    with (
        initialize_config_dir(CONF, version_base="1.3"),
        pytest.raises(InterpolationResolutionError, match=words),
    ):
        to_plain(compose_root("train", ["data=folder", *overrides]))


def test_names_stay_with_a_track(make_track: Any, images: Path) -> None:
    track = make_track()
    cache = track.open(None)
    cache.close()
    assert json.loads((track.folder / "classes.json").read_text()) == cache.class_names == ["cat", "dog", "emu"]
    (track.folder / "classes.json").unlink()  # as an earlier version left it
    cache = track.open(None)
    cache.close()
    assert cache.class_names == []


@pytest.mark.parametrize("content", ['["cat", "dog"]', '["cat", "dog", 3]', '{"0": "cat"}', "[", ""])
def test_a_file_of_other_content_is_reported_in_one_sentence(tmp_path: Path, content: str) -> None:
    (tmp_path / "classes.json").write_text(content)
    with pytest.raises(UserError, match="classes.json"):
        read_names(tmp_path, 3)


def test_names_beside_weights_come_from_an_export(tmp_path: Path) -> None:
    (tmp_path / "classes.json").write_text('["cat"]')
    assert names_beside(tmp_path / "model.safetensors", 3) == [], "another program's file beside weights"
    (tmp_path / "config.yaml").write_text("")
    assert names_beside(tmp_path, 1) == names_beside(tmp_path / "model.safetensors", 1) == ["cat"]
