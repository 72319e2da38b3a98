"""A whole study as dependent jobs on a real SLURM, and with the local launcher."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from studies import Study, checkout
from workspace import EVALUATED, Workspace, assert_same_run, assert_tracked_once

from urepa.cluster.slurm_job import Book, Entry

pytestmark = pytest.mark.long(waits=True)


def entries(study: Study) -> list[Entry]:
    return Book(study.work.folder / "outputs/.jobs").entries()


def test_jobs_run_from_a_copy_of_the_commit(study: Study, reference: Workspace) -> None:
    """The checkout was damaged while the jobs waited."""
    assert study.cluster is not None
    jobs = study.cluster.jobs()
    assert {jobs[i]["state"] for i in study.ids()} == {"COMPLETED"}
    names = sorted(run.parent.name.split(",")[0] + "/" + run.name for run in study.work.runs())
    assert names == [f"quickstart+baseline/seed{s}" for s in (0, 1)]
    for run in study.work.runs():
        assert_tracked_once(study.work.db, run)
        assert json.loads((run / "summary.json").read_text())["code_state"] == "clean"
    (same,) = (run for run in study.work.runs() if run.name == "seed0")
    assert_same_run(same, reference.run)


def test_status(study: Study) -> None:
    said = study.launch(module="launchers.status")
    lines = said.splitlines()
    assert sum(" done " in line for line in lines) == 3
    assert sum("step 12/12  total " in line for line in lines) == 2
    for entry in entries(study):
        assert any(line.startswith(f"{entry.id} ") for line in lines)
        assert entry.log in said
        assert Path(entry.log).exists()


def test_changed_code_is_refused(study: Study) -> None:
    (study.code / "urepa" / "training" / "trainer.py").write_text("this is no Python")
    said = study.launch(*study.own, code=1)
    assert said == (
        "error: jobs run from a copy of the commit, and urepa/training/trainer.py is not committed: commit or stash "
        "it\n"
    )


def test_finished_jobs_are_not_submitted_again(study: Study) -> None:
    study.restore()
    before = study.ids()
    said = study.launch(*study.own)
    assert "preprocess  1 are done, 0 are in the queue already" in said
    assert "train       2 are done, 0 are in the queue already" in said
    assert study.ids() == before


def test_a_refusal_of_sbatch_is_reported(other: Study) -> None:
    own = (*other.work.overrides(), "cluster=slurm", "arms=baseline", "seeds=0", "stages=train")
    said = other.launch(*own, "cluster.partition=nowhere", code=1)
    assert "error: sbatch does not take these jobs: " in said.splitlines()[-1]
    assert "invalid partition specified: nowhere" in said.splitlines()[-1]
    assert "Traceback" not in said
    assert other.ids() == []


@pytest.fixture
def other(study: Study, work: Workspace) -> Study:
    """The same code in another working folder."""
    study.restore()
    return Study(work, study.code, study.cluster)


def test_failed_jobs_are_submitted_again(other: Study, reference: Workspace) -> None:
    """Caches that do not pass keep the runs from starting; only a cancelled run is submitted again."""
    cluster = other.cluster
    assert cluster is not None
    cache = other.work.folder / "cache"
    shutil.copytree(other.work.cache, cache)
    (manifest,) = cache.rglob("tokens_*/manifest.json")
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"count": 10**6}))
    own = (*other.work.overrides("tracking=none", f"data.root={cache}"), "cluster=slurm", "cluster.cpus_per_task=1")
    own, two = (*own, "seeds=0"), ("arms=baseline,lambda_0", "stages=[verify,train]")
    said = other.launch(*own, *two)
    verify, first, second = other.ids()
    assert f"train       2 submitted as {first} to {second}, afterok:{verify}" in said
    other.wait()
    assert [cluster.jobs()[i]["state"] for i in other.ids()] == ["FAILED", "CANCELLED", "CANCELLED"]
    status = other.launch(module="launchers.status")
    assert re.search(r"holds \d+ records, its manifest counts 1000000; make it again", status), "why it failed"
    assert not other.work.runs()
    shutil.rmtree(cache)
    shutil.copytree(other.work.cache, cache)

    said = other.launch(*own, two[0], "stages=train")
    assert "train       2 submitted as" in said
    third, fourth = other.ids()[-2:]
    assert "train       0 are done, 2 are in the queue already" in other.launch(*own, two[0], "stages=train")
    cluster.run("scancel", fourth)
    other.wait()
    assert [cluster.jobs()[i]["state"] for i in (third, fourth)] == ["COMPLETED", "CANCELLED"]

    said = other.launch(*own, two[0], "stages=train")
    assert "train       1 submitted as" in said
    assert "train       1 are done, 0 are in the queue already" in said
    other.wait()
    assert cluster.jobs()[other.ids()[-1]]["state"] == "COMPLETED"
    assert len(other.ids()) == 6
    (same,) = (run for run in other.work.runs() if "+baseline" in str(run))
    assert_same_run(same, reference.run)


def test_a_study_with_the_local_launcher(make_workspace: Callable[[], Workspace], tmp_path: Path) -> None:
    """Without SLURM: every stage in order, with caches that are large enough to be verified."""
    work = make_workspace()
    here = Study(work, checkout(tmp_path / "checkout"), None)
    own = (
        *work.overrides(*EVALUATED, "data.limit=330", f"data.root={tmp_path / 'cache'}"),
        *("arms=baseline,lambda_0", "seeds=0", "cluster.at_once=2", "cluster.gpus=[]"),
    )
    said = here.launch(*own)
    done = [line.split(maxsplit=1)[1] for line in said.splitlines() if line.startswith("done ")]
    assert done[:2] == ["preprocess digits", "verify digits"]
    assert len(done) == 2 + 2 + 2 + 1
    assert done[-1] == "compare"
    assert "lambda_0" in (work.folder / "report" / "index.html").read_text()
    for run in work.runs():
        assert "final/samples_named_rightly" in json.loads((run / "summary.json").read_text())["metrics"]
    again = here.launch(*own)
    assert "done    " not in again
    assert " 0 to do, 2 done" in again
