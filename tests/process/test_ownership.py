"""A folder has one owner and one config; finished runs are unchanged, extended, or used as a start by name."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import signal
from pathlib import Path

import torch
from safetensors.torch import load_file
from workspace import (
    Workspace,
    assert_same_run,
    assert_tracked_once,
    last_checkpoint,
    one_line_error,
    query,
    steps,
    trained,
    wait_for,
)

from urepa.runs.metrics import read_rows


def digests(run: Path) -> dict[str, str]:
    """The digest of every file of a run, except for the lock's note."""
    files = (p for p in sorted(run.rglob("*")) if p.is_file() and p.name != ".lock")
    return {str(p.relative_to(run)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_a_second_process_is_refused_while_the_first_lives(work: Workspace, reference: Workspace) -> None:
    first = work.start("tracking=none")
    try:
        wait_for(lambda: trained(work), first, "its first row")
        first.send_signal(signal.SIGSTOP)  # it lives, and stays where it is
        said = one_line_error(work.train("tracking=none", code=1))
        assert f"is being trained by another process (pid {first.pid} on " in said
        assert str(work.run) in said
    finally:
        first.kill()
        first.wait()
    work.train("tracking=none")
    assert_same_run(work.run, reference.run)


def test_a_requeued_job_waits_for_its_predecessor(work: Workspace, reference: Workspace) -> None:
    """SLURM counts a restart; the previous process still has the folder."""
    first = work.start("tracking=none")
    wait_for(lambda: trained(work), first, "its first row")
    first.send_signal(signal.SIGSTOP)
    try:
        second = work.start("tracking=none", SLURM_RESTART_COUNT="1")
        said = work.folder / "stdout.txt"
        wait_for(lambda: f"is still held by pid {first.pid} on " in said.read_text(), second, "the wait")
    finally:
        first.kill()
        first.wait()
    assert second.wait() == 0, (work.folder / "stderr.txt").read_text()
    assert_same_run(work.run, reference.run)


def test_a_finished_run_is_reported_and_unchanged(copied: Workspace) -> None:
    def in_mlflow() -> list[object]:
        tables = ("metrics", "params", "tags", "runs")
        return [sorted(map(repr, query(copied.db, f"select * from {table}"))) for table in tables]

    before, there = digests(copied.run), in_mlflow()
    done = copied.train()
    assert "is finished: 12 steps" in done.stdout
    assert not re.search(r"^(device|parameters|samples|classes) ", done.stdout, re.MULTILINE), "it begins nothing"
    assert digests(copied.run) == before
    assert in_mlflow() == there
    assert "Traceback" not in done.stderr


def test_a_differing_config_is_refused_with_the_difference(copied: Workspace) -> None:
    config = copied.run / "config.yaml"
    text = config.read_text()
    assert "cfg_dropout: 0.1\n" in text
    config.write_text(text.replace("cfg_dropout: 0.1\n", "cfg_dropout: 0.2\n"))
    before = digests(copied.run)
    said = one_line_error(copied.train(code=1))
    assert "data.cfg_dropout: 0.2 there, 0.1 here" in said
    assert "resume=FOLDER" in said
    assert digests(copied.run) == before


def extension(copied: Workspace, *more: str) -> list[str]:
    return [f"resume={copied.run.relative_to(copied.folder)}", f"data.root={copied.cache}", *more]


def test_resume_extends_a_finished_run(work: Workspace, evaluated: Workspace) -> None:
    """Also when it is killed halfway and started again; rows of the evaluation before the extension do not hide later
    ones from MLflow."""
    shutil.copytree(evaluated.folder, work.folder, dirs_exist_ok=True)
    sent_before = set(query(work.db, "select key, step from metrics"))
    command = extension(work, "trainer.max_steps=20")
    done = work.train(*command, bare=True, arranged=("--kill", "after_backward:5"), code=-signal.SIGKILL)
    assert "extending" in done.stdout
    assert "the command that began it is refused from now on" in done.stdout
    assert "from 12 to 20 steps" in done.stdout
    assert "learning rate" in done.stdout
    assert "at step 12 it goes from 0.0% of its peak to " in done.stdout
    done = work.train(*command, bare=True)
    assert len(work.runs()) == 1
    assert steps(work.run)[-1] == 20
    rows = read_rows(work.run / "metrics.jsonl")
    trained = [row["step"] for row in rows if "train/total" in row]
    assert trained == [1, *range(2, 21, 2)]
    assert rows[-1]["step"] == 20
    assert "final/samples_named_rightly" in rows[-1]
    summary = json.loads((work.run / "summary.json").read_text())
    assert (summary["step"], summary["extended_from"]) == (20, 12)
    assert "is finished: 20 steps" in work.train(*command, bare=True).stdout
    points = query(work.db, "select key, step from metrics")
    assert len(points) == len(set(points))
    here = {(k, row["step"]) for row in rows for k in row if k not in ("step", "time")}
    assert set(points) == here | sent_before
    assert len(query(work.db, "select run_uuid from runs")) == 1


def test_resume_accepts_only_a_later_end(copied: Workspace) -> None:
    before = digests(copied.run)
    refused = ("optimizer.lr.backbone=1", "seed=1", "loss=none")
    said = one_line_error(copied.train(*extension(copied, "trainer.max_steps=20", refused[0]), bare=True, code=1))
    assert "takes trainer.max_steps=N alone; optimizer.lr.backbone would change it" in said
    said = one_line_error(copied.train(*extension(copied, "trainer.max_steps=6"), bare=True, code=1))
    assert "trainer.max_steps=6 is before the end of that run (12)" in said
    said = one_line_error(copied.train("resume=outputs/nowhere", "trainer.max_steps=20", bare=True, code=1))
    assert "resume=outputs/nowhere does not exist" in said
    assert digests(copied.run) == before
    # what is not identity may differ: here, no tracking at all
    copied.train(*extension(copied, "trainer.max_steps=14", "tracking=none"), bare=True)
    assert steps(copied.run)[-1] == 14


def test_warm_start_begins_from_the_ema_and_records_its_source(copied: Workspace) -> None:
    source = copied.run
    overrides = (f"warm_start.checkpoint={source}", "seed=7", "optimizer.lr.backbone=0", "optimizer.lr.head=0")
    copied.train(*overrides)
    (new,) = set(copied.runs()) - {source}
    summary = json.loads((new / "summary.json").read_text())
    begun = hashlib.sha256((last_checkpoint(source) / "ema.safetensors").read_bytes()).hexdigest()
    assert summary["warm_start"]["sha256"] == begun
    assert [summary["warm_start"][key] for key in ("folder", "step")] == [str(source), 12]
    assert json.loads((new / "provenance.json").read_text())["warm_start"] == summary["warm_start"]
    theirs = load_file(last_checkpoint(source) / "ema.safetensors")
    ours = load_file(last_checkpoint(new) / "weights.safetensors")
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    run_id = assert_tracked_once(copied.db, new)
    tags = dict(query(copied.db, "select key, value from tags where run_uuid = ?", run_id))
    assert tags["warm_start"] == f"{source} at step 12, sha256 {begun[:10]}"


def test_a_warm_started_run_does_not_need_its_source_again(copied: Workspace) -> None:
    """The source continues and is then deleted; the run resumes, and its record still names the source."""
    source = copied.run
    overrides = (f"warm_start.checkpoint={source}", "seed=7", "tracking=none")
    copied.train(*overrides, arranged=("--kill", "after_backward:5"), code=-signal.SIGKILL)
    shutil.rmtree(source)
    copied.train(*overrides)
    summary = json.loads((copied.run / "summary.json").read_text())
    assert [summary["warm_start"][key] for key in ("folder", "step")] == [str(source), 12]


def test_an_unsuitable_warm_start_is_refused(copied: Workspace) -> None:
    said = one_line_error(copied.train(f"warm_start.checkpoint={copied.run}", "head.depth=2", "tracking=none", code=1))
    assert "do not fit this run" in said
    assert "heads.mid" in said
    allowed = "warm_start.allow_missing=[heads.*.4.*]"
    said = one_line_error(copied.train(f"warm_start.checkpoint={copied.run}", allowed, "tracking=none", code=1))
    assert "warm_start.allow_missing: heads.*.4.* matches no parameter that is missing there" in said
    assert len(copied.runs()) == 1, "a refused run leaves no folder"
    said = one_line_error(copied.train("warm_start.checkpoint=outputs/nowhere", "tracking=none", code=1))
    assert "outputs/nowhere has no valid checkpoint" in said


def test_an_extended_run_keeps_its_names(work: Workspace) -> None:
    """The extending command names a folder, not an experiment; summary and tags keep the experiment."""
    work.train("+experiment=cifar10", "data=digits", "trainer.max_steps=4")
    assert json.loads((work.run / "summary.json").read_text())["experiment"] == "cifar10"
    work.train(*extension(work, "trainer.max_steps=6"), bare=True)
    assert json.loads((work.run / "summary.json").read_text())["experiment"] == "cifar10"
    run_id = assert_tracked_once(work.db, work.run)
    tags = dict(query(work.db, "select key, value from tags where run_uuid = ?", run_id))
    assert tags["experiment"] == "cifar10"
