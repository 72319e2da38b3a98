"""`python -m urepa.evaluate`: what training's own evaluation would have said, into the same records, once."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

from workspace import EVALUATED, HANGS, Workspace, assert_tracked_once, environment, one_line_error, query

from urepa.metrics import TIMINGS, is_final, read_rows
from urepa.runs import RunFolder

PROBED = (
    "evaluation=cifar10",
    "evaluation.samples.per_class=1",
    "evaluation.samples.sampler_steps=2",
    "evaluation.probe.train_images=80",
    "evaluation.probe.test_images=20",
)


def evaluate(work: Workspace, run: Path | str, *overrides: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "urepa.evaluate", f"run={run}", *overrides]
    done = subprocess.run(
        command, cwd=work.folder, env=environment(), capture_output=True, text=True, timeout=HANGS, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def evaluations(run: Path) -> list[dict[str, Any]]:
    return [
        {k: v for k, v in row.items() if k not in TIMINGS} for row in read_rows(run / "metrics.jsonl") if is_final(row)
    ]


def summary(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


def as_if_killed_before_sending(db: Path, run: Path) -> None:
    """The last row's batch was announced and never arrived; an earlier one has the same metric at the same step."""
    last = read_rows(run / "metrics.jsonl")[-1]
    connection = sqlite3.connect(db)
    connection.execute("delete from metrics where timestamp = ?", (last["time"],))
    connection.commit()
    connection.close()
    cursors = json.loads((run / "mlflow.json").read_text())
    (cursor,) = cursors.values()
    step, evaluations = cursor["sent"]
    at = {"metric": "final/pixel_knn", "at": [step, last["time"]]}
    cursor |= {"sent": [step, evaluations - 1], "sending": {"upto": cursor["sent"]} | at}
    (run / "mlflow.json").write_text(json.dumps(cursors))


def test_the_door_says_what_training_says(copied: Workspace, evaluated: Workspace) -> None:
    run, there = copied.run, evaluated.run
    before = summary(run)
    config = (run / "config.yaml").read_bytes()
    assert evaluations(run) == []
    done = evaluate(copied, run.relative_to(copied.folder), *EVALUATED)
    assert "samples named rightly" in done.stdout
    assert evaluations(run) == evaluations(there) != []
    png = "samples/step_00000012.png"
    assert (run / png).read_bytes() == (there / png).read_bytes()
    after, theirs = summary(run), summary(there)
    assert {k: v for k, v in after.items() if k not in ("metrics", "evaluation")} == {
        k: v for k, v in before.items() if k not in ("metrics", "evaluation")
    }
    assert after["evaluation"] == theirs["evaluation"]
    same = after["metrics"].keys() - set(TIMINGS)
    assert {k: after["metrics"][k] for k in same} == {k: theirs["metrics"][k] for k in same}
    assert (run / "config.yaml").read_bytes() == config
    run_id = assert_tracked_once(copied.db, run)
    assert query(copied.db, "select run_uuid, status from runs") == [(run_id, "FINISHED")]

    rows = read_rows(run / "metrics.jsonl")
    evaluate(copied, run, *EVALUATED)  # nothing new
    assert read_rows(run / "metrics.jsonl") == rows
    assert_tracked_once(copied.db, run)

    for knn in (1, 40):  # another one, then with other settings
        evaluate(copied, run, *PROBED, f"evaluation.probe.knn={knn}")
    own, first, second = evaluations(run)
    assert own == evaluations(there)[0]
    assert first.keys() >= {"step", "final/tap_knn", "final/tap_linear_probe", "final/pixel_knn", "final/teacher_knn"}
    assert first["final/pixel_knn"] != second["final/pixel_knn"]
    assert "final/tap_linear_probe" not in second, "it has not changed"
    assert summary(run)["metrics"].items() >= (own | first | second | {"train/lambda": 0.5}).items() - {("step", 12)}
    in_mlflow = "select step, value from metrics where key = 'final/pixel_knn' and run_uuid = ? order by timestamp"
    assert query(copied.db, in_mlflow, run_id) == [(12, row["final/pixel_knn"]) for row in (first, second)]
    ((facts,),) = query(copied.db, "select value from tags where key = 'urepa.summary' and run_uuid = ?", run_id)
    assert json.loads(facts)["evaluation"] == summary(run)["evaluation"], "what a comparison goes by"
    as_if_killed_before_sending(copied.db, run)
    assert len(query(copied.db, in_mlflow, run_id)) == 1
    evaluate(copied, run, *PROBED, "evaluation.probe.knn=40")
    assert query(copied.db, in_mlflow, run_id) == [(12, row["final/pixel_knn"]) for row in (first, second)]

    copied.train(f"resume={run}", "trainer.max_steps=14", bare=True)  # a longer run keeps them
    assert evaluations(run) == [own, first, second]
    assert len(query(copied.db, in_mlflow, run_id)) == 2
    assert not [key for key in summary(run)["metrics"] if key.startswith("final/")], "they are not of its end"


def test_a_run_that_cannot_be_evaluated_is_said_in_one_line(copied: Workspace, evaluated: Workspace) -> None:
    run, own = copied.run, copied.folder / "evaluated"
    shutil.copytree(evaluated.run, own)

    def said(where: Path | str, *overrides: str) -> str:
        return one_line_error(evaluate(copied, where, *overrides, code=1))

    assert "run=nowhere is not a run's folder" in said("nowhere")
    assert not (copied.folder / "nowhere").exists()
    assert "was trained with evaluation=none: choose one, evaluation=cifar10 or digits" in said(run)
    assert "evaluation.samples.per_class=0: give 1 or more" in said(run, *EVALUATED, "evaluation.samples.per_class=0")
    gone = said(own, "data.root=gone")
    assert "there is no cache at gone/" in gone
    assert not (copied.folder / "gone").exists()
    lock = RunFolder(own)
    lock.claim()
    assert "is being trained by another process" in said(own)
    lock.release()
    copied.db.rename(copied.folder / "elsewhere.db")
    assert "mlflow.db here, which has this run" in said(run, *EVALUATED)
    for checkpoint in (own / "checkpoints").glob("*12"):
        (checkpoint / "ema.safetensors").write_bytes(b"")
    assert "no valid checkpoint of its last step, 12; the newest is 9's" in said(own, "tracking=none").splitlines()[-1]
    (own / "summary.json").unlink()
    assert "is not finished: train it to its last step, 12" in said(own)
