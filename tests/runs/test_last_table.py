"""The table at the end of a run prints all values that a run can have."""

from __future__ import annotations

from pathlib import Path

import pytest

from urepa.runs.last_table import print_report

TRAINER = {"ema_decay": 0.5, "ema_warmup": False}


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
    print_report(summary, TRAINER, Path("outputs/x"), "nowhere", "next")
    printed = capsys.readouterr().out
    assert "nan   predicting zero 1.000" in printed
    assert "0.500   the best constant token inf" in printed
    assert "40 images/s" in printed
    assert "quickstart · baseline · seed 0 · step 10" in printed


def test_an_arm_without_an_ablation_is_what_its_command_changed(capsys: pytest.CaptureFixture[str]) -> None:
    summary = {"experiment": "cifar10", "ablation": "baseline", "overrides": ["head.depth=1", "loss.lambda_max=0.25"]}
    summary |= {"seed": 1, "step": 10, "batch_size": 8, "seconds": {"training": 2.0}, "metrics": {}}
    print_report(summary, TRAINER, Path("outputs/x"), "nowhere", "next")
    assert "cifar10 · head.depth=1, loss.lambda_max=0.25 · seed 1 · step 10" in capsys.readouterr().out


def test_a_distance_has_its_error_below_it(capsys: pytest.CaptureFixture[str]) -> None:
    summary = {"experiment": "x", "ablation": "baseline", "seed": 0, "step": 10, "batch_size": 8}
    metrics = {f"{kind}/{what}/px": value for kind, pair in KINDS.items() for what, value in pair.items()}
    print_report(summary | {"seconds": {"training": 2.0}, "metrics": metrics}, TRAINER, Path("x"), "nowhere", "next")
    distance, error = (line.split() for line in capsys.readouterr().out.splitlines() if "of held-out" in line)
    assert distance == ["FD(px)", "12.500", "of", "held-out", "images", "0.400"]
    assert error == ["standard", "error", "0.250", "of", "held-out", "images", "0.012"]


KINDS = {"final": {"fd": 12.5, "fd_se": 0.25}, "floor": {"fd": 0.4, "fd_se": 0.012}}


@pytest.mark.parametrize(
    ("trainer", "metrics", "printed"),
    [
        ((0.99, False), {}, "67 % of the initial weights (trainer.ema_decay=0.99 over 40 updates)"),  # 0.99^40
        ((0.99, False), {"guard/skipped_steps": 10.0}, "74 % of the initial weights (trainer.ema_decay=0.99 over 30"),
        ((0.99, False), {"ema/initial_share": 0.25}, "25 % of the initial weights"),
        ((0.92, False), {}, None),  # 3.6 %
        ((0.99, True), {}, None),
    ],
)
def test_an_average_of_initial_weights_is_said(
    capsys: pytest.CaptureFixture[str],
    trainer: tuple[float, bool],
    metrics: dict[str, float],
    printed: str | None,
) -> None:
    settings = dict(zip(("ema_decay", "ema_warmup"), trainer, strict=True))
    summary = {"experiment": "quickstart", "ablation": "baseline", "seed": 0, "step": 40, "batch_size": 8}
    summary |= {"seconds": {"training": 2.0}, "metrics": metrics}
    print_report(summary, settings, Path("outputs/x"), "nowhere", "next")
    said = capsys.readouterr().out
    if printed is None:
        assert "initial weights" not in said
    else:
        assert printed in said
        assert "set trainer.ema_warmup=true" in said


def test_control_characters_in_a_name_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    """A summary may come from somebody else."""
    summary = {"experiment": "x\x1b[2J", "ablation": "a\nerror: b", "seed": 0, "step": 1, "batch_size": 8}
    metrics = {"final/fd/\x1b]0;title\x07": 1.0}
    print_report(summary | {"seconds": {"training": 1.0}, "metrics": metrics}, TRAINER, Path("x"), "nowhere", "next")
    printed = capsys.readouterr().out
    assert "x?[2J · a?error: b" in printed
    assert not {"\x1b", "\x07"} & set(printed)
