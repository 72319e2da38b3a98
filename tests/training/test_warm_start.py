"""Parameters are copied from another run's checkpoint or a file, and what differs is listed unless it is allowed."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from urepa.core.errors import UserError
from urepa.runs import checkpoint
from urepa.runs.run_folder import facts_of
from urepa.training import warm_start
from urepa.training.checks.combinations import check_warm_start

LISTS: dict[str, list[str]] = {"allow_missing": [], "allow_shape": [], "allow_unused": []}
THERE = {"a": torch.ones(2), "b.x": torch.full((3,), 2.0), "b.y": torch.full((2, 2), 3.0)}


def parameters(**shapes: tuple[int, ...]) -> dict[str, nn.Parameter]:
    return {name.replace("_", "."): nn.Parameter(torch.zeros(shape)) for name, shape in shapes.items()}


def run_of(folder: Path, ema: dict[str, Tensor], step: int = 7) -> Path:
    """A run with one checkpoint, whose raw weights differ from the average."""
    folder.mkdir(exist_ok=True)
    raw = {name: value + 10 for name, value in ema.items()}
    checkpoint.save(folder / "checkpoints", step, {"weights": raw, "ema": ema, "optimizer": {}}, {}, "")
    return folder


def load(into: dict[str, nn.Parameter], source: Path, here: Path, **allowed: list[str]) -> str:
    here.mkdir(exist_ok=True)
    warm_start.note(here, str(source))
    return warm_start.load(into, LISTS | allowed, here)


def test_the_average_of_the_newest_checkpoint_is_copied(tmp_path: Path) -> None:
    source = run_of(run_of(tmp_path / "run", {k: v - 1 for k, v in THERE.items()}, 3), THERE)
    into = parameters(a=(2,), b_x=(3,), b_y=(2, 2))
    said = load(into, source, tmp_path / "new")
    assert all(torch.equal(into[name], THERE[name]) for name in THERE)
    file = source / "checkpoints/step_00000007/ema.safetensors"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert said == f"starting from {source} at step 7, sha256 {digest[:10]}: 3 parameters copied"
    known = {"folder": str(source), "step": 7, "file": str(file), "sha256": digest}
    assert warm_start.read_note(tmp_path / "new") == known


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "run/checkpoints/step_00000007/weights.safetensors"])
def test_a_file_is_copied(tmp_path: Path, name: str) -> None:
    run_of(tmp_path / "run", {k: v - 10 for k, v in THERE.items()})
    save_file(THERE, tmp_path / "w.safetensors")
    torch.save(THERE, tmp_path / "w.pt")
    into = parameters(a=(2,), b_x=(3,), b_y=(2, 2))
    load(into, tmp_path / name, tmp_path / "new")
    assert all(torch.equal(into[each], THERE[each]) for each in THERE)


def test_what_the_lists_allow_keeps_its_initial_values(tmp_path: Path) -> None:
    source = run_of(tmp_path / "run", THERE)
    into = parameters(a=(2,), b_x=(4,), c_x=(1,), c_y=(1,))
    allowed = {"allow_missing": ["c.*"], "allow_shape": ["b.x"], "allow_unused": ["b.?"]}
    said = load(into, source, tmp_path / "new", **allowed)
    assert torch.equal(into["a"], THERE["a"])
    assert all(not into[name].any() for name in ("b.x", "c.x", "c.y"))
    assert said.endswith(": 1 parameters copied; 2 new (c.x, c.y); 1 of another shape, new (b.x); 1 left out (b.y)")


@pytest.mark.parametrize(
    ("allowed", "message"),
    [
        (
            {},
            r"2 missing there \(c.x, c.y; .*1 without a place here \(b.y; .*1 of another shape \(b.x; warm_start.allow",
        ),
        ({"allow_missing": ["c.x"], "allow_unused": ["*"], "allow_shape": ["*"]}, r"this run: 1 missing there \(c.y; "),
        ({"allow_missing": ["*"], "allow_shape": ["*"]}, r"this run: 1 without a place here \(b.y; "),
        ({"allow_missing": ["*"], "allow_unused": ["*"]}, r"this run: 1 of another shape \(b.x; "),
        (
            {"allow_missing": ["*", "a"], "allow_unused": ["*"], "allow_shape": ["*"]},
            "this run: warm_start.allow_missing: a matches no parameter that is missing there. Compose",
        ),
        (
            {"allow_missing": ["*"], "allow_unused": ["b.x", "*"], "allow_shape": ["*"]},
            "this run: warm_start.allow_unused: b.x matches no parameter that is without a place here. ",
        ),
        (
            {"allow_missing": ["*"], "allow_unused": ["*"], "allow_shape": ["b.x", "a"]},
            "this run: warm_start.allow_shape: a matches no parameter that is of another shape. ",
        ),
    ],
)
def test_other_differences_are_listed_and_nothing_is_copied(
    tmp_path: Path, allowed: dict[str, list[str]], message: str
) -> None:
    source = run_of(tmp_path / "run", THERE)
    into = parameters(a=(2,), b_x=(4,), c_x=(1,), c_y=(1,))
    with pytest.raises(UserError, match=message):
        load(into, source, tmp_path / "new", **allowed)
    assert not any(p.any() for p in into.values())


def test_a_run_that_began_from_other_weights_is_refused(tmp_path: Path) -> None:
    """Its first process was killed before it saved, and the source went on."""
    source = run_of(tmp_path / "run", THERE)
    (tmp_path / "new").mkdir()
    warm_start.note(tmp_path / "new", str(source))
    warm_start.note(tmp_path / "new", str(source))
    run_of(source, {k: v + 1 for k, v in THERE.items()}, step=8)
    with pytest.raises(UserError, match="began from other weights of .* at step 7, .*; now .* at step 8, "):
        warm_start.note(tmp_path / "new", str(source))


def test_a_source_that_changes_while_the_run_starts_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    save_file(THERE, file)
    warm_start.note(tmp_path, str(file))
    save_file({k: v + 1 for k, v in THERE.items()}, file)
    with pytest.raises(UserError, match="changed while this run was starting"):
        warm_start.load(parameters(a=(2,)), LISTS, tmp_path)


@pytest.mark.parametrize("saved", [[torch.ones(1)], {"model": THERE}, {"a": Path("x")}])
def test_a_file_of_something_else_is_refused(tmp_path: Path, saved: Any) -> None:
    torch.save(saved, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"is not a mapping of parameter names|holds more than tensors"):
        load(parameters(a=(2,)), tmp_path / "w.pt", tmp_path / "new")


def test_a_pickle_runs_no_code(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[Callable[[str], Any], tuple[str]]:
            return Path(tmp_path / "harm").write_text, ("x",)

    (tmp_path / "w.pt").write_bytes(pickle.dumps(Harm()))
    with pytest.raises(UserError):
        load(parameters(a=(2,)), tmp_path / "w.pt", tmp_path / "new")
    assert not (tmp_path / "harm").exists()


def test_the_digest_is_a_fact_that_compare_reads() -> None:
    summary = {"step": 3, "data": {}, "warm_start": {"folder": "a", "step": 1, "sha256": "0123456789abcdef"}}
    assert facts_of(summary)["content"]["warm_start"] == "0123456789"
    for before in (None, {"folder": "a", "step": 1}):
        assert "warm_start" not in facts_of(summary | {"warm_start": before})["content"]
    assert json.dumps(facts_of(summary))


def test_an_allow_list_without_a_checkpoint_has_no_effect() -> None:
    check_warm_start({"checkpoint": None} | LISTS)
    check_warm_start({"checkpoint": "a"} | LISTS | {"allow_missing": ["x"]})
    with pytest.raises(UserError, match="warm_start.allow_unused has no effect without"):
        check_warm_start({"checkpoint": None} | LISTS | {"allow_unused": ["x"]})
