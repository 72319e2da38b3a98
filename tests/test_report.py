"""The table at the end prints whatever a run measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from urepa.report import print_report


def test_a_value_that_is_not_finite_prints_too(capsys: pytest.CaptureFixture[str]) -> None:
    """metrics.jsonl keeps such values as strings."""
    summary = {
        "experiment": "quickstart",
        "ablation": "baseline",
        "seed": 0,
        "step": 10,
        "batch_size": 8,
        "seconds": {"training": 2.0},
        "metrics": {
            "val/diffusion": "nan",
            "floor/zero_predictor": 1.0,
            "val/token": 0.5,
            "floor/constant_token": "inf",
        },
    }
    print_report(summary, Path("outputs/x"), "nowhere", "next")
    printed = capsys.readouterr().out
    assert "nan   predicting zero 1.000" in printed
    assert "0.500   the best constant token inf" in printed
    assert "40 images/s" in printed
    assert "quickstart · baseline · seed 0 · step 10" in printed


def test_an_arm_without_an_ablation_is_what_its_command_changed(capsys: pytest.CaptureFixture[str]) -> None:
    summary = {"experiment": "cifar10", "ablation": "baseline", "overrides": ["head.depth=1", "loss.lambda_max=0.25"]}
    summary |= {"seed": 1, "step": 10, "batch_size": 8, "seconds": {"training": 2.0}, "metrics": {}}
    print_report(summary, Path("outputs/x"), "nowhere", "next")
    assert "cifar10 · head.depth=1, loss.lambda_max=0.25 · seed 1 · step 10" in capsys.readouterr().out
