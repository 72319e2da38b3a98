"""The generate command: requests that a run cannot fulfil, folders with another request's images, and images that do
not depend on the others of a request."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from toy_runs import small_sd, write_run

from urepa.core.errors import UserError
from urepa.generate import check_run_request
from urepa.inference import image_request
from urepa.inference.image_request import generate

Compose = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("generate")


@pytest.fixture(scope="module")
def run(root: Path, compose: Compose) -> Path:
    return write_run(root / "outputs" / "track_a" / "seed42", compose(*small_sd(root)), 3)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, compose: Compose, small_run: list[str]) -> Path:
    folder = tmp_path_factory.mktemp("outputs") / "quickstart" / "seed0"
    return write_run(folder, compose(*small_run), 10)


@pytest.fixture(scope="module")
def ask(compose: Compose) -> Callable[..., dict[str, Any]]:
    """ask(run, *overrides): the request as the command makes it."""

    def ask(run: Path, *overrides: str) -> dict[str, Any]:
        return check_run_request(compose(f"run='{run}'", "steps=2", *overrides, root="generate"))

    return ask


@pytest.mark.fast(3)
@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("classes=[1000]", "there is no class 1000; this run's are 0 to 999"),
        ("classes=[3,-1]", "there is no class -1"),
        ("classes=[]", "give at least one"),
        ("n=0", "n=0: give 1 or more"),
        ("batch_size=0", "batch_size=0: give 1 or more"),
        ("steps=1001", "this run has 1000 timesteps"),
        ("guidance=-1", "give 0 or more"),
        ("guidance=nan", "give 0 or more"),
        ("run=null", "say which run"),
        ("run=nowhere", "run=nowhere does not exist; give the folder of a run"),
    ],
)
def test_requests_that_a_run_cannot_fulfil_are_refused(run: Path, ask: Any, override: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        ask(run, override)


@pytest.mark.slow
def test_a_run_that_began_with_random_weights_has_no_base(small: Path, ask: Any) -> None:
    with pytest.raises(UserError, match="began with random weights"):
        ask(small, "against=base")
    with pytest.raises(UserError, match=r"data\.vae has no effect"):
        generate(ask(small, "data.vae=somewhere"))


NAMES = ["zero", "one", "<b>two</b>", "three", "four", "five", "six", "seven", "eight", "nine"]


@pytest.mark.slow
def test_classes_are_chosen_by_the_names_stored_with_a_run(small: Path, ask: Any) -> None:
    """Without the track's caches: the names are stored with the run."""
    with pytest.raises(UserError, match="seven is a name, and the names of this run's classes are not known"):
        ask(small, "classes=[seven,1]")
    assert ask(small, "classes=1")["classes"] == [1]
    record = small / "provenance.json"
    record.write_text(json.dumps({"data": {"content": {}, "samples": {}, "places": {}, "classes": NAMES}}))
    try:
        asked = ask(small, "classes=[seven,1]", "n=1")
        assert (asked["classes"], asked["class_names"]) == ([1, 7], NAMES)
        assert ask(small, "classes=nine")["classes"] == [9]
        with pytest.raises(UserError, match=r"no class sevn \(did you mean 'seven'\?\)"):
            ask(small, "classes=[sevn]")
        images = image_request.ImageSet(asked, image_request.find_origin(asked))
        assert images.folder.name.endswith(",classes=1+7"), "the same request by ids has the same folder"
        assert "class_names" not in images.request
        assert [images._label(c) for c in asked["classes"]] == ["1 one", "7 seven"]
        record.write_text(json.dumps({"data": {"classes": NAMES[:3]}}))
        with pytest.raises(UserError, match="does not hold the names of 10 classes"):
            ask(small, "classes=1")
    finally:
        record.unlink()


def pixels(folder: Path) -> dict[str, np.ndarray]:
    return {p.name: np.asarray(Image.open(p)).astype(int) for p in (folder / "images").iterdir()}


@pytest.mark.slow
def test_an_image_does_not_depend_on_the_others_of_a_request(small: Path, ask: Any) -> None:
    generate(ask(small, "n=3", "guidance=2", "classes=[7,1]"))
    (folder,) = (small / "generated").iterdir()
    assert folder.name == "step_00000010,ddim2,n=3,guidance=2,seed=0,classes=1+7"
    first = pixels(folder)
    assert sorted(first) == [f"c{c:04d}_{i:05d}.png" for c in (1, 7) for i in range(3)]
    generate(ask(small, "n=2", "guidance=2", "batch_size=3", f"out={small / 'others'}"))
    others = pixels(small / "others")
    assert len(others) == 20
    both = first.keys() & others.keys()
    assert len(both) == 4
    assert max(np.abs(first[name] - others[name]).max() for name in both) <= 1
    assert "timesteps" not in json.loads((folder / "request.json").read_text())
    for change in ("seed=1", "guidance=1", "steps=3"):
        out = small / change.replace("=", "_")
        generate(ask(small, "n=1", "classes=[1]", f"out={out}", "guidance=2", change))
        differs = np.abs(pixels(out)["c0001_00000.png"] - first["c0001_00000.png"])
        assert differs.max() > 5, change
    assert json.loads((small / "steps_3" / "request.json").read_text())["timesteps"] == 1000
    request = json.loads((small / "steps_3" / "request.json").read_text())
    del request["timesteps"]
    (small / "steps_3" / "request.json").write_text(json.dumps(request))  # of before
    with pytest.raises(UserError, match="timesteps: None there, 1000 here"):
        generate(ask(small, "n=1", "classes=[1]", f"out={small / 'steps_3'}", "guidance=2", "steps=3"))
    generate(ask(small, "n=1", "guidance=2", "steps=3", "classes=[1]"))
    assert (small / "generated" / "step_00000010,ddim3,timesteps=1000,n=1,guidance=2,seed=0,classes=1").is_dir()


@pytest.mark.slow
def test_a_folder_contains_one_request(run: Path, root: Path, ask: Any, capsys: pytest.CaptureFixture[str]) -> None:
    out = root / "out"
    request = ("classes=[5]", "n=2", f"out={out}")
    generate(ask(run, *request))
    said = capsys.readouterr().out
    assert "has 3 of 4 steps; these are images of that step" in said
    assert f"2 images (2 new) in {out}/" in said
    before = {p: p.stat().st_mtime_ns for p in (out / "images").iterdir()}
    generate(ask(run, *request, "batch_size=1", "against=base"))
    assert "4 images (2 new)" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in (out / "images").iterdir()} == before
    assert len(list((out / "base").iterdir())) == 2
    with pytest.raises(UserError, match=r"holds other images \(guidance: 1.0 there, 2.0 here\); give another folder"):
        generate(ask(run, *request, "guidance=2"))
    with pytest.raises(UserError, match=r"holds other images \(vae: sd there, another here\)"):
        generate(ask(run, *request, f"data.vae={root / 'another'}"))
    assert json.loads((out / "request.json").read_text())["guidance"] == 1.0


@pytest.mark.slow
def test_missing_weights_are_reported_before_the_first_step(
    run: Path, root: Path, ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(image_request, "sample_images")
    with pytest.raises(UserError, match=r"data\.vae=.*nowhere could not be loaded"):
        generate(ask(run, "n=1", "classes=[1]", f"out={root / 'without'}", f"data.vae={root / 'nowhere'}"))
    (root / "empty").mkdir()
    with pytest.raises(UserError, match=r"has neither unet/config\.json nor config\.json"):
        generate(ask(run, "n=1", "classes=[1]", f"backbone.weights={root / 'empty'}"))
    assert not (root / "without").exists()
