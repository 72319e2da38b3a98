"""Runs that `stop_when` ends before their last step: what they leave, also after a kill and on two ranks."""

from __future__ import annotations

import json

from workspace import Workspace, ended, one_line_error, steps

EARLY = ("stop_when=plateau", "stop_when.patience=1", "stop_when.min_delta=1000", "trainer.validate_every=2")
WHY = "val/diffusion has not improved for 1 validations: its best is "


def test_a_run_ends_early_and_stays_finished(work: Workspace) -> None:
    """The first validation, of step 2, is the best; that of step 4 is no improvement by 1,000."""
    done = work.train(*EARLY, "tracking=none")
    assert f"step 4: the run ends here, by stop_when: {WHY}" in done.stdout
    file = work.run / "summary.json"
    summary = json.loads(file.read_text())
    assert summary["step"] == steps(work.run)[-1] == 4
    assert (summary["ended_early"]["step"], summary["ended_early"]["of"]) == (4, 12)
    assert summary["ended_early"]["why"].startswith(WHY)
    rows = (work.run / "metrics.jsonl").read_bytes()

    file.unlink()  # as if it had been killed after its last checkpoint
    work.train(*EARLY, "tracking=none")
    assert json.loads(file.read_text())["ended_early"] == summary["ended_early"]
    assert (work.run / "metrics.jsonl").read_bytes() == rows
    assert steps(work.run)[-1] == 4

    again = work.train(*EARLY, "tracking=none")
    assert f"is finished: 4 steps, ended early, at step 4 of 12, by stop_when: {WHY}" in again.stdout
    again = work.train(f"resume={work.run}", bare=True)
    assert "is finished: 4 steps, ended early" in again.stdout
    longer = work.train(f"resume={work.run}", "trainer.max_steps=20", bare=True, code=1)
    assert "a longer one would end there too: start another run with stop_when=never" in one_line_error(longer)
    done = ended(["-m", "urepa.compare"], work.folder)
    assert done.returncode == 1
    assert "ended early, at step 4 of 12, by stop_when" in one_line_error(done)
    assert ended(["-m", "urepa.compare", "at_step=4"], work.folder).returncode == 0


def test_all_ranks_end_at_the_same_step(work: Workspace) -> None:
    work.train(*EARLY, "tracking=none", ranks=2)
    assert json.loads((work.run / "summary.json").read_text())["ended_early"]["step"] == 4
    assert steps(work.run)[-1] == 4
