"""Grouping by what was computed, what is set apart, the baseline, names and sweeps."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from urepa.comparison.arms import Study, sweeps
from urepa.errors import UserError

W = "w" * 16
Add, Group = Callable[..., None], Callable[..., Study]


def reasons(study: Study) -> dict[str, str]:
    return {apart.run.name: apart.reason for apart in study.apart}


def test_arms_are_configs_not_names(add: Add, study: Group) -> None:
    """Two names for one config are one arm; one name for two configs is two."""
    add(seeds=(0,), name="cifar10")
    add(seeds=(1,), name="cifar10,head.depth=2")  # the default, written out
    add(seeds=(0, 1), changes={"head.depth": 1}, name="cifar10,head.depth=1")
    add(seeds=(2,), changes={"head.depth": 1, "data.root": "elsewhere", "trainer.threads": 2}, name="copy")
    found = study()
    assert [(arm.label, list(arm.runs)) for arm in found.arms] == [("depth=1", [0, 1, 2]), ("depth=2", [0, 1])]
    assert not found.apart


def test_changes_are_read_from_configs(add: Add, study: Group) -> None:
    add()
    add("lambda_08", {"loss.lambda_max": 0.8})
    add("eps_target", {"objective._target_": "urepa.objectives.DDPMEpsilon"})
    add("none", {"loss": {"_target_": "urepa.alignment.DiffusionOnly"}})
    found = {arm.label: [str(change) for change in arm.changes] for arm in study().arms}
    assert found == {
        "baseline": [],
        "eps_target": ["objective: DDPMVelocity → DDPMEpsilon"],
        "lambda_08": ["loss.lambda_max: 0.5 → 0.8"],
        "none": ["loss: AlignmentLoss → DiffusionOnly"],
    }


def test_order_is_the_documents_then_by_number(add: Add, study: Group) -> None:
    add("a", {"head.depth": 4})
    add("baseline")
    add("lora_16", {"head.depth": 3})
    for depth in (10, 9):
        add("y", {"head.depth": depth}, name=f"cifar10+y,head.depth={depth}")
    found = study(order=("head_single_layer", "lora_16", "baseline"))
    assert [arm.label for arm in found.arms] == ["baseline", "lora_16", "a", "y, depth=9", "y, depth=10"]


def test_set_apart(add: Add, study: Group) -> None:
    add()
    add(seeds=(3,), finished=False)
    add(seeds=(4,), summary={"extended_from": 300})
    add(seeds=(5,), summary={"git_commit": "b" * 40})
    add(seeds=(6,), summary={"code_state": "changed 0123456789"})
    add(seeds=(7,), changes={"evaluation.probe.knn": 5})
    add(seeds=(8,), summary={"validation_set": W})
    add(seeds=(0,), name="again", start=1_700_000_000_000)
    add("slow", {"head.depth": 1}, seeds=(0, 1), name="cifar10+slow")
    found = study()
    assert reasons(found) == {
        "cifar10+baseline/seed3": "unfinished: its last logged step is 300",
        "cifar10+baseline/seed4": "extended from 300 steps: its learning rate is not that of a run in one go",
        "cifar10+baseline/seed5": "another version of the code: bbbbbbbbb, not aaaaaaaaa",
        "cifar10+baseline/seed6": "another version of the code: aaaaaaaaa (changed 0123456789), not aaaaaaaaa",
        "cifar10+baseline/seed7": "another validation set or protocol: evaluation.probe.knn is 5, not 20",
        "cifar10+baseline/seed8": f"another validation set or protocol: validation images is {W}, not {'v' * 16}",
        "again/seed0": "the same arm and seed once more: the newest is taken",
    }
    assert [list(arm.runs) for arm in found.arms] == [[0, 1, 2], [0, 1]]


def test_the_baseline(add: Add, study: Group) -> None:
    for lam in (0.5, 0.0):
        for depth in (2, 1):
            add(changes={"loss.lambda_max": lam, "head.depth": depth}, name=f"{lam},{depth}", seeds=(0,))
    assert study().baseline.label == "depth=1, lambda_max=0"
    assert study(baseline="loss.lambda_max=0.50,head.depth=2").baseline.label == "depth=2, lambda_max=0.5"
    assert study(baseline="depth=2, lambda_max=0").baseline.label == "depth=2, lambda_max=0"
    with pytest.raises(UserError, match=r"head.depth=1 fits several arms: depth=1, lambda_max=0, depth=1, lambda_max"):
        study(baseline="head.depth=1")
    with pytest.raises(UserError, match=r"baseline=nobody names no arm: depth=1, lambda_max=0, "):
        study(baseline="nobody")


def test_the_arm_in_the_middle_is_the_baseline_if_none_is_named(add: Add, study: Group) -> None:
    for ablation, changes in (("a", {"head.depth": 1}), ("b", {}), ("c", {"loss.lambda_max": 0.8})):
        add(ablation, changes, seeds=(0,))
    assert study().baseline.label == "b"
    assert study().why_baseline == "it differs from the others in the fewest settings"


def test_a_chosen_baseline_brings_its_code_and_protocol(add: Add, study: Group) -> None:
    add()
    add("new", {"head.depth": 1}, seeds=(0,), summary={"git_commit": "b" * 40, "validation_set": "w" * 16})
    assert study().baseline.label == "baseline"
    found = study(baseline="new")
    assert (found.baseline.label, len(found.arms), len(found.apart)) == ("new", 1, 3)


def test_sweeps(add: Add, study: Group) -> None:
    for lam in (0.0, 0.5, 0.8):
        for depth in (1, 2):
            add(changes={"loss.lambda_max": lam, "head.depth": depth}, name=f"{lam},{depth}", seeds=(0,))
    for steps in (1, 30):
        add(changes={"loss.warmup_steps": steps, "loss.lambda_max": 0.0, "head.depth": 1}, name=f"w{steps}", seeds=(0,))
    grid, line = sweeps(study(baseline="loss.lambda_max=0,head.depth=1,loss.warmup_steps=60"))
    assert (grid.keys, grid.values) == (("loss.lambda_max", "head.depth"), ((0.0, 0.5, 0.8), (1.0, 2.0)))
    assert grid.arms[0.5, 2.0].config["loss.lambda_max"] == "0.5"
    assert grid.arms[0.5, 2.0].config["head.depth"] == "2"
    assert (line.keys, line.values) == (("loss.warmup_steps",), ((1.0, 30.0, 60.0),))


def test_no_sweep_with_a_hole(add: Add, study: Group) -> None:
    for lam, depth in ((0.0, 1), (0.5, 1), (0.5, 2)):
        add(changes={"loss.lambda_max": lam, "head.depth": depth}, name=f"{lam},{depth}", seeds=(0,))
    assert sweeps(study()) == []


def test_nothing_finished(add: Add, study: Group) -> None:
    add(finished=False, seeds=(0, 1))
    with pytest.raises(UserError, match="none of the 2 runs is finished: .*seed0 is unfinished: its last"):
        study()
