"""Names that `names=` gives to arms."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from test_arms import reasons

from urepa.core.errors import UserError
from urepa.reports.comparison.arms import ComparedArms

Add, Group = Callable[..., None], Callable[..., ComparedArms]


def test_arms_are_called_as_given_and_stand_in_that_order(add: Add, study: Group) -> None:
    """By the folder of their runs. An arm without a name says in what it differs; the baseline is first."""
    add(name="x", seeds=(0,))
    add(changes={"loss.lambda_max": 0.25}, name="x,loss.lambda_max=0.25", seeds=(0, 1))
    add(changes={"head.depth": 1}, name="x,head.depth=1", seeds=(0,))
    add(changes={"head.depth": 3}, name="x,head.depth=3", seeds=(0,))
    names = ("weak=x,loss.lambda_max=0.25", "base=x", "shallow=x,head.depth=1")
    found = study(("weak", "shallow", "base"), "base", names)
    assert [arm.label for arm in found.arms] == ["base", "weak", "shallow", "depth=3, lambda_max=0.5"]
    assert found.why_baseline == "chosen with baseline="
    assert [str(change) for change in found.arms[1].changes] == ["loss.lambda_max: 0.5 → 0.25"]
    assert study((), "shallow", names).baseline.label == "shallow"


def test_the_named_baseline_says_what_is_measured_how(add: Add, study: Group) -> None:
    """Also where other runs took more steps in all: they are the ones that are set apart."""
    add(name="x", seeds=(0,))
    add(changes={"loss.lambda_max": 0.0}, name="y", seeds=(0,))
    add(changes={"evaluation.probe.knn": 5, "head.depth": 1}, name="z", seeds=(0, 1, 2))
    assert {run.split("/")[0] for run in reasons(study((), "base", ("base=x",)))} == {"z"}
    assert {run.split("/")[0] for run in reasons(study())} == {"x", "y"}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("base", "names: 'base' is not LABEL=FOLDER"),
        ("=x", "names: '=x' is not LABEL=FOLDER"),
        ("base=nowhere", "names: no run here lies in a folder 'nowhere'; give one as x"),
        ("base=x/seed0", "names: no run here lies in a folder 'x/seed0'"),
    ],
)
def test_a_name_of_no_arm_is_a_mistake(add: Add, study: Group, name: str, words: str) -> None:
    add(name="x", seeds=(0,))
    with pytest.raises(UserError, match=words):
        study((), None, (name,))


def test_a_run_that_is_set_apart_may_have_a_name(add: Add, study: Group) -> None:
    add(name="x", seeds=(0,))
    add(changes={"head.depth": 1}, name="broken", seeds=(0,), finished=False)
    assert [arm.label for arm in study((), "base", ("base=x", "other=broken")).arms] == ["base"]
