"""The command that trains an encoder on a track's images, and a run that is aligned to it."""

from __future__ import annotations

import json
from pathlib import Path

import edge
import pytest
from safetensors.torch import load_file, save_file

from urepa.core.hashing import file_sha256
from urepa.core.weights_metadata import as_metadata, read_metadata
from urepa.models.teachers.own_mae_sizes import KEY

COMMAND = "urepa.train_encoder"
SIZES = ("patch_size=2", "width=64", "depth=1")
TEACHER = ("image_size=8", "patch=2", "grid=[4,4]", "width=64", "depth=1")
RUN = "outputs/own/seed0"


def of_folder(images: Path) -> list[str]:
    held_out = ["data.validation_images=6", "data.test_images=6"]
    return ["data=folder", f"data.images={images}", "data.image_size=8", "data.unshuffle=2", *held_out]


def aligned(images: Path) -> list[str]:
    """A few steps of the small U-Net."""
    small = [
        "backbone.block_out_channels=[32,32]",
        "backbone.attention=[false,true]",
        "backbone.cross_attention_dim=32",
    ]
    trained = ["trainer.batch_size=8", "trainer.validation_group=6", "trainer.max_steps=2", "trainer.threads=1"]
    rest = ["loss.warmup_steps=1", "head.depth=1", "evaluation=none", "tracking=none", f"hydra.run.dir={RUN}"]
    teacher = ["teacher=own_mae", *(f"teacher.{one}" for one in TEACHER)]
    return [*of_folder(images), *small, *trained, *rest, *teacher]


@pytest.mark.slow
def test_the_command_writes_one_file_once_and_a_run_aligns_to_it(
    images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "here").mkdir()
    here, asked = tmp_path / "here", [*of_folder(images), *SIZES, "epochs=2"]
    missing = edge.run(capfd, "urepa.train", aligned(images), here)
    assert missing.code == 1
    assert "there is no data/folder/own_mae.safetensors: teacher=own_mae needs an encoder" in missing.err
    assert edge.content(here) == {}

    done = edge.run(capfd, COMMAND, asked, here)
    file = here / "data" / "folder" / "own_mae.safetensors"
    assert done.code == 0, done.err
    _, _, first, *_, last = done.out.splitlines()
    assert first == "training own_mae on 30 images of folder (4 of 16 patches visible), 2 epochs"
    assert last.endswith(f"on 6 validation images; weights sha256 {file_sha256(file)}")
    before = edge.content(here)
    again = edge.run(capfd, COMMAND, asked, here)
    assert (again.code, again.out.splitlines()[-1]) == (0, last)
    other = edge.run(capfd, COMMAND, [*asked, "mask_ratio=0.5"], here)
    assert other.code == 1
    assert "mask_ratio: 0.75 there, 0.5 here" in other.err
    assert edge.content(here) == before

    edge.must("urepa.train", aligned(images), here)
    summary = json.loads((here / RUN / "summary.json").read_text())
    assert file_sha256(file) in json.dumps(summary["data"])
    assert not any("circular" in name for name in summary["metrics"])
    stores = [place.name for place in (here / "data" / "folder").glob("*/tokens_*")]
    assert stores == [f"tokens_own_mae-{file_sha256(file)[:12]}_8_4x4"]

    moved = edge.run(capfd, "urepa.train", [*aligned(images), "data.root=moved"], here)
    assert (moved.code, "is finished" in moved.out) == (0, True), "where the file lies is not part of a run's identity"
    (there := here / "there").mkdir()
    (here / "data" / "folder").rename(there / "folder")
    edge.must("urepa.train", [f"resume={RUN}", "data.root=there/folder", "trainer.max_steps=3"], here)
    file = there / "folder" / file.name
    tensors = load_file(file)
    tensors["norm.bias"][0] += 1
    save_file(tensors, file, as_metadata(KEY, read_metadata(file, KEY)))
    changed = edge.run(capfd, "urepa.train", [f"resume={RUN}", "trainer.max_steps=4"], here)
    assert changed.code == 1
    assert "here; tokens: " in changed.err, "a run does not go on with another teacher"
    assert "give the data that it was trained on" in changed.err
