"""Non-finite steps: skipped, counted, named on disk, and too many of them stop the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from urepa.core.errors import UserError
from urepa.method.training_step import Terms
from urepa.training.non_finite_guard import Guard, non_finite

CPU = torch.device("cpu")
FINE = torch.tensor(1.0)


def terms(*diffusion: float, token: float = 0.5) -> Terms:
    values = torch.tensor(diffusion, dtype=torch.float32)
    return Terms(values.mean(), {"diffusion": values, "token": torch.full_like(values, token)})


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "bad_samples.jsonl").read_text().splitlines()]


def test_finite_steps_are_not_skipped(tmp_path: Path) -> None:
    guard = Guard(tmp_path, 3, CPU)
    assert guard.judge(0, ["a", "b"], [terms(1, 2)], FINE).item() == 0.0
    assert guard.read(1, True) == {"guard/skipped_steps": 0.0, "guard/manifold_spikes": 0.0}
    assert not (tmp_path / "bad_samples.jsonl").exists()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_sample_whose_loss_is_not_finite_is_named(tmp_path: Path, value: float) -> None:
    guard = Guard(tmp_path, 3, CPU)
    bad = guard.judge(7, ["a", "b", "c", "d"], [terms(1, 2), terms(value, 2)], FINE)
    assert bad.item() == 1.0
    assert guard.read(8, True)["guard/skipped_steps"] == 1.0
    assert rows(tmp_path) == [{"step": 7, "cause": "loss", "sample_ids": ["c"]}]


def test_any_non_finite_term_of_a_sample_skips_the_step(tmp_path: Path) -> None:
    guard = Guard(tmp_path, 3, CPU)
    assert guard.judge(0, ["a", "b"], [terms(1, 2, token=torch.nan)], FINE).item() == 1.0


def test_a_bad_gradient_names_the_whole_batch(tmp_path: Path) -> None:
    guard = Guard(tmp_path, 3, CPU)
    assert guard.judge(7, ["a", "b"], [terms(1, 2)], torch.tensor(torch.inf)).item() == 1.0
    guard.read(8, True)
    assert rows(tmp_path) == [{"step": 7, "cause": "gradient", "sample_ids": ["a", "b"]}]


def test_a_non_finite_total_alone_skips_the_step(tmp_path: Path) -> None:
    """A manifold loss belongs to no single sample."""
    guard = Guard(tmp_path, 3, CPU)
    fine = terms(1, 2)
    assert guard.judge(0, ["a", "b"], [Terms(torch.tensor(torch.nan), fine.per_sample)], FINE).item() == 1.0


def test_too_many_in_a_row_stop_the_run_and_leave_the_ids(tmp_path: Path) -> None:
    guard = Guard(tmp_path, 3, CPU)
    for step in range(4, 7):
        guard.judge(step, [f"a{step}", f"b{step}"], [terms(torch.nan, 1)], FINE)
    with pytest.raises(UserError, match=r"stopped at step 10: 3 updates in a row.*trainer.max_skipped=3"):
        guard.read(10, True)
    assert rows(tmp_path) == [{"step": s, "cause": "loss", "sample_ids": [f"a{s}"]} for s in (4, 5, 6)]


def test_a_good_step_ends_the_streak(tmp_path: Path) -> None:
    guard = Guard(tmp_path, 3, CPU)
    for step, value in enumerate([torch.nan, torch.nan, 1.0, torch.nan, torch.nan]):
        guard.judge(step, ["a"], [terms(value)], FINE)
    assert guard.read(5, True)["guard/skipped_steps"] == 4.0
    assert [row["step"] for row in rows(tmp_path)] == [0, 1, 3, 4]


def test_a_streak_continues_over_reads_and_checkpoints(tmp_path: Path) -> None:
    guard = Guard(tmp_path, 3, CPU)
    for step in range(2):
        guard.judge(step, ["a"], [terms(torch.nan)], FINE)
        guard.read(step + 1, True)
    resumed = Guard(tmp_path, 3, CPU)
    resumed.load(guard.state())
    resumed.judge(2, ["a"], [terms(torch.nan)], FINE)
    with pytest.raises(UserError):
        resumed.read(3, True)
    assert [row["step"] for row in rows(tmp_path)] == [0, 1, 2]


def test_each_bad_step_is_written_once(tmp_path: Path) -> None:
    guard = Guard(tmp_path, 9, CPU)
    for step in range(3):
        guard.judge(step, ["a"], [terms(torch.nan if step != 1 else 1.0)], FINE)
        guard.read(step + 1, True)
        guard.read(step + 1, True)
    assert [row["step"] for row in rows(tmp_path)] == [0, 2]


def test_spikes_are_counted_on_updates_that_happen(tmp_path: Path) -> None:
    guard = Guard(tmp_path, 3, CPU)
    for spike, value in ((True, 1.0), (False, 1.0), (True, torch.nan), (True, 1.0)):
        skipped = guard.judge(0, ["a"], [terms(value)], FINE, torch.tensor(spike))
        assert skipped.item() == float(value != 1.0)
    guard.judge(0, ["a"], [terms(1.0)], FINE)
    assert guard.read(1, True) == {"guard/skipped_steps": 1.0, "guard/manifold_spikes": 2.0}


def test_spikes_are_skipped_if_asked_to(tmp_path: Path) -> None:
    guard = Guard(tmp_path, 3, CPU, skip_spikes=True)
    found = [
        guard.judge(i, ["a"], [terms(1.0)], FINE, torch.tensor(s)).item() for i, s in enumerate((True, False, True))
    ]
    assert found == [1.0, 0.0, 1.0]
    assert guard.read(3, True) == {"guard/skipped_steps": 2.0, "guard/manifold_spikes": 2.0}
    assert rows(tmp_path) == [], "only steps that are not finite have a bad sample"
    for i in (3, 4):
        guard.judge(i, ["a"], [terms(1.0)], FINE, torch.tensor(True))
    with pytest.raises(UserError, match=r"3 updates in a row.*not finite, or a spike.*and in spikes\.jsonl"):
        guard.read(5, True)


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    guard = Guard(tmp_path, 3, CPU)
    guard.judge(0, ["a"], [terms(torch.nan)], FINE)
    guard.read(1, is_main=False)
    assert not (tmp_path / "bad_samples.jsonl").exists()


@pytest.mark.parametrize(("bad", "steps", "finished"), [(0, 6, True), (3, 6, True), (4, 6, False), (1, 1, False)])
def test_a_run_that_skipped_more_than_half_of_its_updates_is_not_finished(
    tmp_path: Path, bad: int, steps: int, finished: bool
) -> None:
    guard = Guard(tmp_path, 9, CPU)
    for step in range(steps):
        guard.judge(step, ["a"], [terms(torch.nan if step < bad else 1.0)], FINE)
    resumed = Guard(tmp_path, 9, CPU)
    resumed.load(guard.state())
    for one in (guard, resumed):
        if finished:
            one.require_updates(steps)
        else:
            with pytest.raises(UserError, match=f"{bad} of {steps} updates .* is not finished"):
                one.require_updates(steps)


def test_tensors_that_are_not_finite_are_named() -> None:
    fine, whole = torch.ones(3), torch.ones(2, dtype=torch.int64)
    odd = [torch.tensor([1.0, value]) for value in (torch.nan, torch.inf, -torch.inf)]
    parts = {"weights": {"a": fine, "b": odd[0]}, "ema": {"a": odd[1], "n": whole}, "optimizer": {"a": odd[2]}}
    assert non_finite(parts) == ["weights/b", "ema/a", "optimizer/a"]
    assert non_finite({"weights": {"a": fine}, "ema": {"n": whole}}) == []


def test_resuming_keeps_the_lines_before_the_checkpoint(tmp_path: Path) -> None:
    """Half a last line is removed; a damaged line before the checkpoint stays and is named."""
    guard = Guard(tmp_path, 9, CPU)
    for step in range(4):
        guard.judge(step, ["a"], [terms(torch.nan)], FINE)
    guard.read(4, True)
    file = tmp_path / "bad_samples.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"step": 4, "cau')
    guard.cut(9)
    assert file.read_bytes() == whole
    bad = whole.replace(b'{"step": 2', b'#"step": 2')
    file.write_bytes(bad)
    with pytest.warns(UserWarning, match=r"line 3 of .*bad_samples.jsonl is not JSON; it is left as it is"):
        guard.cut(3)
    assert file.read_bytes() == b"".join(bad.splitlines(keepends=True)[:3])
