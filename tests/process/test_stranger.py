"""A run folder from somebody else with all commands: nothing in its config.yaml runs or reads the environment."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from strangers import SECRET, VALUE, payload
from workspace import HANGS, Workspace, start

from urepa.core.files import write_whole


def hostile(run: Path, form: str, marker: Path) -> None:
    """Replaces the run's config.yaml."""
    file = run / "config.yaml"
    config: dict[str, Any] = yaml.safe_load(file.read_text())
    if form == "a part":
        config["objective"]["x"] = payload(marker)
        file.write_text(json.dumps(config))
    elif form == "a tag":
        text = json.dumps(config)[:-1]
        file.write_text(text + f', "resume": !!python/object/apply:builtins.open ["{marker}", w]}}')
    else:
        config["data"]["name"] = f"${{oc.env:{SECRET}}}"
        config["tracking"] = {"_target_": "urepa.runs.trackers.no_tracking.NoTracking"}
        file.write_text(json.dumps(config))


def commands(work: Workspace, run: str) -> dict[str, list[str]]:
    """Every command that is given a run's folder, or finds one."""
    tiny = work.overrides()
    return {
        "the command that trained it": ["-m", "urepa.train", *tiny],
        "resume": ["-m", "urepa.train", f"resume={run}", "trainer.max_steps=14"],
        "evaluate": ["-m", "urepa.evaluate", f"run={run}"],
        "evaluate with more": ["-m", "urepa.evaluate", f"run={run}", "evaluation=[alignment,knn]"],
        "evaluate a list": ["-m", "urepa.evaluate", f"run={run}", "evaluation=dense", "evaluation.dense.folder=x"],
        "generate": ["-m", "urepa.generate", f"run={run}"],
        "export": ["-m", "urepa.export", f"run={run}"],
        "compare": ["-m", "urepa.compare", "runs=outputs", "report=report"],
        "status": ["-m", "launchers.status"],
    }


@pytest.fixture(scope="module")
def strange(make_workspace: Any, reference: Workspace) -> Workspace:
    """A finished run, and a job in the book that belongs to it."""
    here: Workspace = make_workspace()
    shutil.copytree(reference.folder, here.folder, dirs_exist_ok=True)
    job = {"name": "x", "commands": [["urepa.train"]], "run": str(here.run)}
    line = {"job": job, "id": "local-1_0", "log": str(here.folder / "x.log"), "submitted": 0.0, "state": "failed"}
    book = here.folder / "outputs" / ".jobs" / "jobs.jsonl"
    book.parent.mkdir()
    write_whole(book, json.dumps(line) + "\n")
    return here


@pytest.mark.parametrize("form", ["a part", "a tag", "the environment"])
def test_no_command_runs_or_resolves_a_foreign_config(strange: Workspace, form: str, tmp_path: Path) -> None:
    run, marker = strange.run, tmp_path / "marker"
    before = (run / "config.yaml").read_text()
    (own := tmp_path / "out").mkdir()
    try:
        hostile(run, form, marker)
        written = (run / "config.yaml").read_bytes()
        for name, what in commands(strange, str(run.relative_to(strange.folder))).items():
            done = said_by(what, strange.folder, own)
            assert not marker.exists(), name
            assert VALUE not in done.stdout + done.stderr, name
            assert "Traceback" not in done.stderr, f"{name}: {done.stderr}"
            assert (run / "config.yaml").read_bytes() == written, name
            if name != "status":  # it tells of all jobs, whatever one of their folders holds
                assert done.returncode == 1, f"{name}: {done.stdout} {done.stderr}"
                assert "config.yaml" in done.stderr, f"{name}: {done.stderr}"
        files = (p for p in strange.folder.rglob("*") if p.is_file() and p.suffix != ".db")
        assert not [p for p in files if VALUE.encode() in p.read_bytes()]
    finally:
        (run / "config.yaml").write_text(before)


def said_by(what: list[str], folder: Path, own: Path) -> subprocess.CompletedProcess[str]:
    """The output of a command with the secret in its environment."""
    out, err = own / "stdout.txt", own / "stderr.txt"
    code = start(what, folder, out, err, **{SECRET: VALUE}).wait(HANGS)
    return subprocess.CompletedProcess(what, code, out.read_text(), err.read_text())
