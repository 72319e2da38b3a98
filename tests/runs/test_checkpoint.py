"""A checkpoint is complete, including its state.json, or it counts as damaged and an older one is used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from urepa.runs import checkpoint

STATE = {"metrics_rows": 13, "best": {"step": 40, "total": 0.25}, "guard": {"skipped": 0.0}, "seconds": 1e-7}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Checkpoints of steps 40 and 60."""
    for step in (40, 60):
        tensors = {part: {"w": torch.full((3,), float(step))} for part in checkpoint.PARTS}
        checkpoint.save(tmp_path / "checkpoints", step, tensors, STATE, "seed: 0\n")
    return tmp_path / "checkpoints"


def rewritten(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes the newest checkpoint's state.json."""
    file = folder / "step_00000060" / "state.json"
    state = json.loads(file.read_text())
    changed = change(state)
    file.write_text(json.dumps(state if changed is None else changed))


def as_before(folder: Path) -> None:
    """The state as earlier versions wrote it, without a digest of itself."""
    rewritten(folder, lambda state: {k: v for k, v in state.items() if k != "sha256"})


def test_a_checkpoint_returns_what_was_saved(folder: Path) -> None:
    found = checkpoint.newest(folder)
    assert found is not None
    assert found.step == 60
    assert {key: found.state[key] for key in STATE} == STATE
    assert found.state["files"].keys() == checkpoint.FILES
    assert found.tensors("ema")["w"].tolist() == [60.0] * 3


def test_a_reformatted_state_and_one_of_an_earlier_version_open(folder: Path, recwarn: pytest.WarningsRecorder) -> None:
    rewritten(folder, lambda state: dict(reversed(state.items())))
    for _ in range(2):
        found = checkpoint.newest(folder)
        assert found is not None
        assert (found.step, found.state["metrics_rows"]) == (60, 13)
        as_before(folder)
    assert not recwarn.list


OTHER = "../step_00000040/config.yaml"  # of the same content
STRUCTURE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "step": lambda state: state.update(step=55),
    "step as text": lambda state: state.update(step="60"),
    "no files": lambda state: state.update(files={}),
    "a file less": lambda state: {
        **state,
        "files": {k: v for k, v in state["files"].items() if k != "ema.safetensors"},
    },
    "files as a list": lambda state: state.update(files=list(state["files"])),
    "another's digest": lambda state: state["files"].update({"ema.safetensors": "0" * 64}),
    "a file elsewhere": lambda state: state["files"].update({OTHER: state["files"]["config.yaml"]}),
    "a list": lambda state: [state],
    "a text": lambda state: "60",
}
VALUES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "metrics_rows": lambda state: state.update(metrics_rows=3),
    "best": lambda state: state["best"].update(total=0.5),
    "one more key": lambda state: state.update(more=1),
    "another digest": lambda state: state.update(sha256="0" * 64),
}


@pytest.mark.parametrize("edit", [*STRUCTURE, *VALUES])
def test_an_edited_state_is_damage(folder: Path, edit: str) -> None:
    rewritten(folder, (STRUCTURE | VALUES)[edit])
    with pytest.warns(UserWarning, match=r"skipping the damaged checkpoint .*step_00000060: state.json"):
        found = checkpoint.newest(folder)
    assert found is not None
    assert found.step == 40


@pytest.mark.parametrize("edit", STRUCTURE)
def test_without_a_digest_its_structure_is_checked(folder: Path, edit: str) -> None:
    as_before(folder)
    rewritten(folder, STRUCTURE[edit])
    with pytest.warns(UserWarning, match=r"skipping the damaged checkpoint .*step_00000060: "):
        found = checkpoint.newest(folder)
    assert found is not None
    assert found.step == 40


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:skipping the damaged checkpoint")
def test_a_damaged_byte_of_a_state(folder: Path) -> None:
    """The checkpoint is skipped, or its state is unchanged (white space, or the name of the digest)."""
    file = folder / "step_00000060" / "state.json"
    whole, state = file.read_bytes(), json.loads(file.read_bytes())
    del state["sha256"]
    places = range(0, len(whole), 3)
    skipped = 0
    for at in places:
        file.write_bytes(whole[:at] + b"7" + whole[at + 1 :])
        found = checkpoint.newest(folder)
        assert found is not None
        skipped += found.step == 40
        assert found.step == 40 or {k: found.state[k] for k in state} == state
    assert skipped > 0.7 * len(places)


def test_a_folder_under_another_name_is_damaged(folder: Path) -> None:
    """A copy of step 40 as step 80 would combine old weights with a later position in the data."""
    (folder / "step_00000040").rename(folder / "step_00000080")
    with pytest.warns(UserWarning, match=r"state.json is of step 40, and the folder is step_00000080"):
        found = checkpoint.newest(folder)
    assert found is not None
    assert found.step == 60
