"""The samples that a run saw are part of its identity: the same command with other images is refused or reported, and
changes nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from workspace import Workspace, one_line_error, steps

FOLDER = (
    "data=folder",
    "data.image_size=16",
    "data.unshuffle=2",
    "data.limit=null",
    "data.validation_images=10",
    "data.test_images=10",
    "data.root=caches",
    "loss=none",
    "tracking=none",
    "trainer.max_steps=4",
    "trainer.checkpoint_every=2",
)


def make_images(root: Path, seed: int) -> Path:
    """Writes two classes of 25 pictures of noise; their names do not depend on the seed."""
    rng = np.random.default_rng(seed)
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for i in range(25):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(root / name / f"{i:02d}.png")
    return root


class Images(Workspace):
    """A working folder with images in one/mine, two/mine (others of the same names) and other."""

    def overrides(self, *more: str) -> list[str]:
        every = [*self.tiny, *FOLDER, *more]
        last = {o.lstrip("+").partition("=")[0]: o for o in every}
        return [o for o in last.values() if not o.startswith(("head.depth", "loss.warmup"))]


@pytest.fixture
def images(tmp_path: Path, work: Workspace) -> Images:
    here = Images(work.folder, work.cache, work.tiny)
    for seed, name in enumerate(("one/mine", "two/mine", "other")):
        make_images(here.folder / name, seed)
    return here


def everything(run: Path) -> dict[str, bytes]:
    return {str(p.relative_to(run)): p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != ".lock"}


def test_images_of_another_name_are_another_run(images: Images) -> None:
    images.train("data.images=one/mine,other", "-m")
    told = [set(json.loads((run / "summary.json").read_text())["overrides"]) for run in images.runs()]
    assert len(told) == 2
    assert told[0] ^ told[1] == {"data.images=mine", "data.images=other"}


def test_images_of_the_same_name_in_another_folder_are_compared(images: Images) -> None:
    """Finished, and stopped halfway; made here, and copied from another machine."""
    images.train("data.images=one/mine")
    assert yaml.safe_load((images.run / "config.yaml").read_text())["data"]["num_classes"] == 2, "counted and stored"
    assert json.loads((images.run / "provenance.json").read_text())["data"]["classes"] == ["cat", "dog"]
    before = everything(images.run)
    done = images.train("data.images=two/mine")
    assert "is finished: 4 steps (data not checked" in done.stdout, "there are no caches of these"
    shutil.copytree(images.folder / "caches", images.folder / "copied")
    shutil.copytree(images.folder / "one", images.folder / "moved", copy_function=shutil.copy)
    images.train("data.images=two/mine", "seed=1")  # which makes caches of them
    said = one_line_error(images.train("data.images=two/mine", code=1))
    assert "was trained on other data" in said
    assert str(images.folder / "one" / "mine") in said
    assert str(images.folder / "two" / "mine") in said
    run = next(run for run in images.runs() if run.name == "seed0")
    assert everything(run) == before, "a command that does not train changes nothing"
    for file in (run / "summary.json", *run.glob("checkpoints/step_00000004/*")):
        file.unlink()
    (run / "checkpoints" / "step_00000004").rmdir()
    assert steps(run) == [2]
    assert "was trained on other data" in one_line_error(images.train("data.images=two/mine", code=1))
    done = images.train("data.images=one/mine", "data.root=copied")
    assert "resuming" in done.stdout
    assert json.loads((run / "summary.json").read_text())["step"] == 4


def test_images_that_changed_in_place(images: Images) -> None:
    images.train("data.images=other")
    picture = images.folder / "other" / "cat" / "00.png"
    shutil.copy(images.folder / "one" / "mine" / "cat" / "00.png", picture)
    done = images.train("data.images=other")
    assert "warning: data.images=other is not what the caches in" in done.stdout
    assert "is finished: 4 steps. Its results" in done.stdout
    said = one_line_error(images.train("data.images=other", "seed=1", code=1))
    assert "1 rewritten (cat/00.png)" in said
    assert [run.name for run in images.runs()] == ["seed0"], "a refused command leaves nothing"
    for file in (images.run / "summary.json", *images.run.glob("checkpoints/step_00000004/*")):
        file.unlink()
    done = images.train("data.images=other")
    assert "warning: data.images=other is not what the caches in" in done.stdout
    assert "resuming" in done.stdout


def test_the_same_relative_path_from_another_working_folder(images: Images, tmp_path: Path) -> None:
    """One data.root for two working folders, each with its own images at the same relative path."""
    images.train("data.images=one/mine", f"data.root={tmp_path / 'shared'}")
    (images.folder / "one").rename(images.folder / "was one")
    (images.folder / "two").rename(images.folder / "one")
    said = one_line_error(images.train("data.images=one/mine", "seed=1", f"data.root={tmp_path / 'shared'}", code=1))
    assert "50 rewritten" in said
