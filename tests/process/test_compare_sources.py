"""Real runs: training leaves in its folder and in MLflow all that a comparison needs, and both are the same."""

from __future__ import annotations

import json
import subprocess
import sys

from workspace import Workspace, environment


def test_folders_and_store_give_the_same_comparison(work: Workspace) -> None:
    for overrides in (("loss.lambda_max=0",), ("loss.lambda_max=0.5",)):
        work.train(*overrides, "trainer.max_steps=4", "trainer.validate_every=2")
    found = []
    for source in ("runs=outputs", "store=sqlite:///mlflow.db"):
        command = [sys.executable, "-m", "urepa.compare", source, "out=all.json"]
        done = subprocess.run(command, cwd=work.folder, env=environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "One seed an arm: there is no interval" in done.stdout
        found.append(json.loads((work.folder / "all.json").read_text()))
    assert found[0] == found[1]
    baseline, arm = found[0]["arms"]
    assert (baseline["label"], arm["label"]) == ("lambda_max=0", "lambda_max=0.5")
    assert arm["changes"] == [{"key": "loss.lambda_max", "baseline": "0", "here": "0.5"}]
    filled = {key for key, cell in arm["cells"].items() if cell["n"]}
    assert {"val/diffusion", "val/token", "val/manifold", "val/x0_error", "val/x0_error_by_t/0.0-0.1"} <= filled
    assert arm["cells"]["val/total"]["why"] == "not comparable: another loss.lambda_max"
    costs = {name for name, cell in arm["costs"].items() if cell["n"]}
    assert costs == {"trainable, M", "s/step", "peak memory, GB"}
    # λ warms up over 4 steps: the arms have parted, but hardly
    assert 0 < abs(arm["differences"]["val/diffusion"]["mean"]) < 0.1
