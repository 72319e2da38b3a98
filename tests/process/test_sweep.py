"""`-m` makes one run per combination, each with its folder and its MLflow run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import yaml
from studies import checkout
from workspace import Workspace, assert_tracked_once, environment, query, wait_for

from urepa.core.code_version import code_state


def test_four_runs_four_folders_four_mlflow_runs(work: Workspace) -> None:
    work.train("+ablation=glob([baseline,lambda_0])", "head.depth=1,2", "trainer.max_steps=4", "-m")
    runs = work.runs()
    assert len(runs) == 4
    ids = [assert_tracked_once(work.db, run) for run in runs]
    assert len(set(ids)) == 4
    assert len(query(work.db, "select run_uuid from runs where status = 'FINISHED'")) == 4
    combinations = set()
    for run, run_id in zip(runs, ids, strict=True):
        params = dict(query(work.db, "select key, value from params where run_uuid = ?", run_id))
        lam = float(params["loss.lambda_max"])
        arm = {0.5: "baseline", 0.0: "lambda_0"}[lam]
        combinations.add((lam, int(params["head.depth"])))
        assert run.parent.name.startswith(f"quickstart+{arm},")
        summary = json.loads((run / "summary.json").read_text())
        assert summary["ablation"] == arm
        assert {"head.depth", "trainer.max_steps"} <= {o.split("=")[0] for o in summary["overrides"]}
        assert not [key for key in params if key.startswith("arm")]
        assert params["trainer.max_steps"] == "4"
        assert params["optimizer.lr.backbone"] == "0.001"
        tags = dict(query(work.db, "select key, value from tags where run_uuid = ?", run_id))
        expected = {"experiment": "quickstart", "ablation": arm, "seed": "0"} | {
            "git_commit": code_state()["git_commit"],
            "mlflow.source.git.commit": code_state()["git_commit"],
            "folder": str(run),
            "backbone": "tiny_unet",
            "teacher": "EfficientNetLite0",
            "objective": "DDPMVelocity",
            "data": "digits",
            "lambda": f"{lam:g}",
            "head_depth": params["head.depth"],
            "lora_rank": "none",
            "steps": "4",
        }
        assert expected.items() <= tags.items()
        assert f"head.depth={params['head.depth']}" in tags["arm"].split(", ")
        assert ("lambda_0" in tags["arm"]) is (lam == 0)
        assert "baseline" not in tags["arm"], "this arm is what the command changed"
        assert tags["code_state"].split()[0] in ("clean", "changed")
    assert combinations == {(0.0, 1), (0.0, 2), (0.5, 1), (0.5, 2)}


def test_edits_while_a_run_trains_change_no_later_run(work: Workspace, tmp_path: Path) -> None:
    """Both run in one process; the arm's check also composes the command without the arm."""
    code = checkout(tmp_path / "checkout")
    command = work.command(*work.overrides("+ablation=baseline,no_cfg_dropout", "trainer.max_steps=4", "tracking=none"))
    sweep = subprocess.Popen(
        [sys.executable, *command, "-m"],
        cwd=work.folder,
        env=environment() | {"PYTHONPATH": str(code)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(work.runs, sweep, "the first run's config")
    for file, line, instead in (
        ("trainer/quickstart", "ema_decay: 0.99", "ema_decay: 0.5"),
        ("ablation/no_cfg_dropout", "cfg_dropout: 0.0", "cfg_dropout: 0.7"),
    ):
        path = code / "conf" / f"{file}.yaml"
        assert line in path.read_text()
        path.write_text(path.read_text().replace(line, instead))
    assert len(work.runs()) == 1, "the second run has begun already"
    assert sweep.wait() == 0, sweep.communicate()
    configs = {run.parent.name: yaml.safe_load((run / "config.yaml").read_text()) for run in work.runs()}
    dropout = {name.split(",")[0]: (c["trainer"]["ema_decay"], c["data"]["cfg_dropout"]) for name, c in configs.items()}
    assert dropout == {"quickstart+baseline": (0.99, 0.1), "quickstart+no_cfg_dropout": (0.99, 0.0)}
