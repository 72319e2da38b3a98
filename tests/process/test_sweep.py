"""`-m` makes a run per combination, each with its folder and its MLflow run."""

from __future__ import annotations

import json

from workspace import Workspace, assert_tracked_once, query

from urepa.code_state import code_state


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
