"""The command that trains a track's classifier, and the evaluation that uses it."""

from __future__ import annotations

import json
from pathlib import Path

import edge
import pytest
from mistakes.parts import HERE, RUN, TINY

from urepa.core.hashing import file_sha256

COMMAND = "urepa.train_classifier"


def of_folder(images: Path) -> list[str]:
    held_out = ["data.validation_images=6", "data.test_images=6"]
    return ["data=folder", f"data.images={images}", "data.image_size=8", "data.unshuffle=2", *held_out, "epochs=1"]


@pytest.mark.slow
def test_the_command_writes_one_file_once(images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "here").mkdir()
    done = edge.run(capfd, COMMAND, of_folder(images), tmp_path / "here")
    file = tmp_path / "here" / "data" / "folder" / "cifar_cnn.safetensors"
    making, _, first, *_, last = done.out.splitlines()
    assert making.startswith("making the caches in data/folder/")
    assert done.code == 0, done.err
    assert first == "training cifar_cnn on 30 images of folder (3 classes, 8 px), 1 epochs"
    assert last.startswith("accuracy 0.")
    assert last.endswith(f"on 6 test images; weights sha256 {file_sha256(file)}")
    assert {place.name for place in (tmp_path / "here").iterdir()} == {"data"}
    before = edge.content(tmp_path / "here")
    again = edge.run(capfd, COMMAND, of_folder(images), tmp_path / "here")
    assert (again.code, again.out.splitlines()[-1]) == (0, last)
    assert "is there already" in again.out
    other = edge.run(capfd, COMMAND, [*of_folder(images), "data.limit=15"], tmp_path / "here")
    assert other.code == 1
    assert "train_images: 30 there, 15 here" in other.err
    assert edge.content(tmp_path / "here") == before, "what is refused leaves no caches either"


@pytest.mark.slow
def test_a_summary_records_the_encoder_of_an_evaluation(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Trained, evaluated without the classifier, with it, and with its track in another folder."""
    edge.must("urepa.train", [*TINY, HERE], tmp_path)
    few = ["subset=20", "kid_subsets=2", "kid_subset_size=5", "images.steps=2", "images.count=20"]
    asked = ["evaluation=cifar10_fd", *(f"evaluation.generation.{one}" for one in few)]
    asked += ["~evaluation.generation.encoders.efficientnet_lite2"]
    without = edge.run(capfd, "urepa.evaluate", [f"run={RUN}", *asked], tmp_path)
    assert without.code == 1
    assert "there is no data/cifar_cnn.safetensors: cifar_cnn needs a classifier" in without.err

    data = [one for one in TINY if one.startswith("data.")]
    edge.must("urepa.train_classifier", ["data=digits", *data, "epochs=1"], tmp_path)
    edge.must("urepa.evaluate", [f"run={RUN}", *asked], tmp_path)

    def encoder() -> tuple[dict[str, object], float]:
        summary = json.loads((tmp_path / RUN / "summary.json").read_text())
        assert {f"{kind}/fd_se/cifar_cnn" for kind in ("final", "floor")} <= summary["metrics"].keys()
        told = summary["evaluation"]["generation"]["encoders"]["cifar_cnn"]
        return told, summary["metrics"]["final/fd/cifar_cnn"]

    told, distance = encoder()
    digest = file_sha256(tmp_path / "data" / "cifar_cnn.safetensors")
    assert told["weights"] == "data/cifar_cnn.safetensors"
    assert told["weights_file"]["sha256"] == digest  # type: ignore[index]
    assert 0 <= float(told["weights_file"]["accuracy"]) <= 1  # type: ignore[index]
    (tmp_path / "data").rename(tmp_path / "moved")
    edge.must("urepa.evaluate", [f"run={RUN}", *asked, "data.root=moved"], tmp_path)
    moved, again = encoder()
    assert moved["weights"] == "moved/cifar_cnn.safetensors"
    assert (moved["weights_file"], again) == (told["weights_file"], distance)
