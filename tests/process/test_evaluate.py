"""`python -m urepa.evaluate`: the same values as training's own evaluation, written once into the same records."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
from pathlib import Path
from typing import Any

from workspace import EVALUATED, Workspace, assert_tracked_once, ended, one_line_error, query

from urepa.cluster.slurm_job import Job
from urepa.core.errors import NOT_EVALUATED
from urepa.runs.metrics import TIMINGS, is_final, read_rows
from urepa.runs.run_folder import RunFolder

PROBED = (
    "evaluation=cifar10",
    "evaluation.samples.per_class=1",
    "evaluation.samples.sampler_steps=2",
    "evaluation.probe.train_images=80",
    "evaluation.probe.test_images=20",
)


def evaluate(work: Workspace, run: Path | str, *overrides: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = ended(["-m", "urepa.evaluate", f"run={run}", *overrides], work.folder)
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
    before, last = read_rows(run / "metrics.jsonl")[-2:]
    connection = sqlite3.connect(db)
    connection.execute("delete from metrics where timestamp = ?", (last["time"],))
    connection.commit()
    connection.close()
    cursors = json.loads((run / "mlflow.json").read_text())
    (cursor,) = cursors.values()
    step, evaluations = cursor["sent"]
    marks = [{"metric": "final/pixel_knn", "at": [step, row["time"]]} for row in (before, last)]
    cursor |= {"last": marks[0], "sending": {"upto": cursor["sent"]} | marks[1], "sent": [step, evaluations - 1]}
    (run / "mlflow.json").write_text(json.dumps(cursors))


def test_the_command_gives_the_values_of_training(copied: Workspace, evaluated: Workspace) -> None:
    run, there = copied.run, evaluated.run
    before = summary(run)
    config = (run / "config.yaml").read_bytes()
    assert evaluations(run) == []
    done = evaluate(copied, run.relative_to(copied.folder), *EVALUATED)
    assert "samples classified correctly" in done.stdout
    assert evaluations(run) == evaluations(there) != []
    png = "samples/step_00000012.png"
    assert (run / png).read_bytes() == (there / png).read_bytes()
    after, theirs = summary(run), summary(there)
    added = ("metrics", "evaluation", "evaluation_keys", "evaluated_by")
    assert {k: v for k, v in after.items() if k not in added} == {k: v for k, v in before.items() if k not in added}
    assert after["evaluated_by"] == theirs["evaluated_by"] == {"samples": theirs["code_digest"]}
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
    assert first["final/samples_named_rightly"] is None, "these samples are named by nobody"
    last = {k: v for k, v in (own | first | second | {"train/lambda": 0.5}).items() if v is not None}
    assert summary(run)["metrics"].items() >= last.items() - {("step", 12)}
    assert "final/samples_named_rightly" not in summary(run)["metrics"]
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


def test_other_settings_leave_no_stale_value_beside_new_ones(copied: Workspace) -> None:
    """41 images have no floor with 40 held-out ones: the floor with 20 is removed from the summary and from MLflow."""
    run, part = copied.run, "evaluation.generation"
    few = (f"{part}.subset=10", f"{part}.kid_subsets=2", f"{part}.kid_subset_size=5", f"{part}.images.steps=2")
    few += (f"~{part}.encoders.efficientnet_lite0", f"{part}.reference_images=20")
    evaluate(copied, run, "evaluation=generation", *few, f"{part}.images.count=20")
    assert "floor/fd/pixels" in summary(run)["metrics"]
    evaluate(copied, run, "evaluation=generation", *few, f"{part}.images.count=41")
    after = summary(run)
    assert after["evaluation"]["generation"]["images"]["count"] == 41
    assert not [key for key in after["metrics"] if key.startswith("floor/") and key.endswith("/pixels")]
    assert set(after["evaluation_keys"]["generation"]) <= after["metrics"].keys()
    row = evaluations(run)[-1]
    assert row["floor/fd/pixels"] is None
    last = "select is_nan from metrics where key = ? order by timestamp desc limit 1"
    connection = sqlite3.connect(copied.db)
    assert connection.execute(last, ("floor/fd/pixels",)).fetchall() == [(1,)]
    assert connection.execute(last, ("final/fd/pixels",)).fetchall() == [(0,)]
    connection.close()


def test_a_failed_evaluation_does_not_affect_the_others(copied: Workspace) -> None:
    run = copied.run
    some = (
        *PROBED[1:],
        "evaluation.samples.knn=1",
        "evaluation.probe.tap=midd",
        "evaluation.alignment.timesteps=[100]",
    )
    read = ("evaluation.knn.train_images=40", "evaluation.knn.k=3")
    chosen = "evaluation=[cifar10,alignment,knn]"
    said = one_line_error(evaluate(copied, run, chosen, *some, *read, code=1))
    assert "evaluation.probe: this backbone has no tap 'midd'" in said
    assert "evaluation.knn" not in said
    (row,) = evaluations(run)
    assert row.keys() >= {
        "final/samples_named_rightly",
        "final/token_cosine",
        "final/cka_by_t/mid/0100",
        "final/knn/tap",
    }
    assert "final/tap_knn" not in row
    assert row["final/knn/untrained_tap"] != row["final/knn/tap"] or row["final/untrained_cka"] != row["final/cka"]
    assert summary(run)["metrics"].items() >= row.items() - {("step", 12)}
    assert summary(run)["evaluation"].keys() == {"samples", "probe", "alignment", "knn"}, (
        "a comparison knows what was asked"
    )
    assert_tracked_once(copied.db, run)
    assert list((run / "evaluation").iterdir()) == [run / "evaluation" / "alignment_step_00000012.png"]


def test_a_run_that_cannot_be_evaluated_is_said_in_one_line(copied: Workspace, evaluated: Workspace) -> None:
    run, own = copied.run, copied.folder / "evaluated"
    shutil.copytree(evaluated.run, own)

    def said(where: Path | str, *overrides: str) -> str:
        return one_line_error(evaluate(copied, where, *overrides, code=1))

    assert "run=nowhere does not exist" in said("nowhere")
    assert not (copied.folder / "nowhere").exists()
    assert "was trained with evaluation=none: choose some, evaluation=[NAME,...], of those" in said(run)
    assert said(run, "evaluation=knn", "evaluation.knn.k=101") == (
        "evaluation.knn: 100 training images are too few for k=101: give evaluation.knn.k=100"
    )
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


def test_a_damaged_run_is_not_evaluated(copied: Workspace) -> None:
    """Neither its rows nor its summary's values are rewritten."""
    run = copied.run
    file = run / "metrics.jsonl"
    whole = file.read_bytes()
    lines = whole.splitlines(keepends=True)
    for damage, why in (
        ([lines[0], lines[1].replace(b":", b";", 1), *lines[2:]], "line 2 of metrics.jsonl is not JSON; put the file"),
        (lines[:-1], "metrics.jsonl ends at step 10 and the run at step 12; put the file back from a copy"),
    ):
        file.write_bytes(b"".join(damage))
        before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != ".lock"}
        assert f"{why}" in one_line_error(evaluate(copied, run, *EVALUATED, code=1))
        assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != ".lock"} == before


def test_values_whose_rows_are_missing_stay_in_the_summary(copied: Workspace) -> None:
    """For a run that continued with a new metrics.jsonl; half a line of a killed evaluation does not matter."""
    run = copied.run
    before = summary(run)["metrics"]
    (run / "metrics.jsonl").write_text('{"step": 12, "final/sam')
    evaluate(copied, run, *EVALUATED, "tracking=none")
    (row,) = read_rows(run / "metrics.jsonl")
    assert is_final(row)
    assert summary(run)["metrics"] == before | {k: v for k, v in row.items() if k not in ("step", "time")}


def test_a_run_whose_evaluation_failed_is_finished(work: Workspace) -> None:
    """It ends with its own exit code; the same command trains nothing again."""
    part, more = "evaluation.inception", ("evaluation=inception", "tracking=none", "trainer.max_steps=2")
    refused = one_line_error(work.train(*more, code=1))
    more += (f"{part}.reference_images=null", f"{part}.subset=100", f"{part}.kid_subset_size=50")
    assert refused == (
        f"{part}: 100 training images and 50,000 generated ones are too few for reference_images=10000 and "
        f"subset=10000 and kid_subset_size=1000: give {' '.join(more[3:])}"
    ), "before its first step"
    assert not list((work.folder / "outputs").rglob("config.yaml"))
    said = one_line_error(work.train(*more, code=NOT_EVALUATED))
    assert said.startswith("evaluation.inception: there is no pt_inception-2015-12-05-6726825d.pth")
    assert Job("arm", (), str(work.run)).is_finished()
    rows = read_rows(work.run / "metrics.jsonl")
    assert "is finished: 2 steps" in work.train(*more).stdout
    assert read_rows(work.run / "metrics.jsonl") == rows


def test_several_runs_one_after_the_other(copied: Workspace) -> None:
    """A run that cannot be evaluated does not stop the others, a folder that is no run's is skipped, and Hydra leaves
    no files."""
    first = copied.run
    place = copied.folder / "outputs" / "other,x=1"
    for name in ("seed2", "seed10"):
        shutil.copytree(first, place / name)
    (place / "seed1").mkdir()
    (place / "seed2" / "summary.json").unlink()
    before = set(copied.folder.iterdir())
    what = ["-m", "urepa.evaluate", "-m", "run=glob(outputs/*/seed*)", *EVALUATED, "tracking=none"]
    done = ended(what, copied.folder)
    assert done.returncode == 1, done.stdout + done.stderr
    order = [line for line in done.stdout.splitlines() if line.startswith("[")]
    runs = [f"run='{run.relative_to(copied.folder)}'" for run in (place / "seed2", place / "seed10", first)]
    assert order == [f"[{i}/3] {run}" for i, run in enumerate(runs, 1)]
    assert [bool(evaluations(run)) for run in (place / "seed2", place / "seed10", first)] == [False, True, True]
    assert evaluations(first) == evaluations(place / "seed10")
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert errors[-2] == "error: 1 of 3 failed, the others are done:"
    assert errors[-1].startswith(f"error: {runs[0]}: run=outputs/other,x=1/seed2 is not finished")
    assert "Traceback" not in done.stderr
    assert "samples: sampling 10 images:" in done.stderr
    assert set(copied.folder.iterdir()) == before
