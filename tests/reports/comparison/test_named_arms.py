"""Names that `names=` gives to arms."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from test_arms import reasons

from urepa.core.errors import UserError
from urepa.reports.comparison.arms import ComparedArms

Add, Group = Callable[..., None], Callable[..., ComparedArms]


def test_arms_have_the_given_names_and_order(add: Add, study: Group) -> None:
    """By the folder of their runs. An arm without a name is labelled by its differences; the baseline is first."""
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


def test_the_named_baseline_determines_the_protocol(add: Add, study: Group) -> None:
    """Also if other runs took more steps in all: those are set apart."""
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
def test_a_name_without_an_arm_is_refused(add: Add, study: Group, name: str, words: str) -> None:
    add(name="x", seeds=(0,))
    with pytest.raises(UserError, match=words):
        study((), None, (name,))


def test_a_run_that_is_set_apart_may_have_a_name(add: Add, study: Group) -> None:
    add(name="x", seeds=(0,))
    add(changes={"head.depth": 1}, name="broken", seeds=(0,), finished=False)
    assert [arm.label for arm in study((), "base", ("base=x", "other=broken")).arms] == ["base"]
