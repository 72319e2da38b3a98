"""Criteria of success that metrics declare, in the remarks: by the interval of paired seeds, or by the arms' means."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from scipy import stats

from urepa.config.parts import KINDS, SCHEMAS
from urepa.core.evaluation_protocols import BetterThan, BetterWith, Metric, Reference
from urepa.evaluation.measures.image_reconstruction import ImageReconstruction
from urepa.evaluation.measures.image_swap import ImageSwap
from urepa.models.backbones.nanodit import NanoDiT
from urepa.reports.comparison.criteria import criteria_remarks
from urepa.reports.comparison.page import page
from urepa.reports.comparison.results import Results

Add, Summarise = Callable[..., None], Callable[..., Results]
SETTING = "loss.manifold_diagonal"
THAN = BetterThan(
    "right of all", "final/likeness/a", (("final/likeness_own/a", "own"), ("final/likeness_far/a", "far"))
)


@dataclass
class Sharpness:
    """Declares a criterion of either kind."""

    _target_: str = f"{__name__}.Sharpness"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("final/blur", "blur", "↓", criteria=(BetterWith("10 % sharper", SETTING, 0.1),)),
        Metric(
            "final/likeness/{}",
            "likeness ({})",
            "↑",
            beside=(Reference("final/likeness_own/{}"), Reference("final/likeness_far/{}")),
            criteria=(THAN,),
        ),
    )

    def __call__(self, context: Any) -> dict[str, float]:
        return {}


@pytest.fixture(autouse=True)
def _declared() -> Iterator[None]:
    """Declares the evaluation as `urepa.config.own_package` does, and removes it after the test."""
    KINDS["evaluation"][Sharpness._target_] = SCHEMAS[Sharpness._target_] = Sharpness
    yield
    del KINDS["evaluation"][Sharpness._target_], SCHEMAS[Sharpness._target_]


def blur(values: dict[int, float]) -> Callable[[int], dict[str, float]]:
    return lambda seed: {"final/blur": values[seed]}


WITH, WITHOUT = {0: 0.80, 1: 0.84, 2: 0.79}, {0: 1.00, 1: 1.05, 2: 0.98}


@pytest.mark.parametrize("baseline_has_it", [True, False])
def test_a_gain_is_judged_by_the_interval_of_the_paired_difference(
    add: Add, results: Summarise, baseline_has_it: bool
) -> None:
    """Whichever of the two arms is the baseline. An arm that differs in more is not judged."""
    first, second = (WITH, WITHOUT) if baseline_has_it else (WITHOUT, WITH)
    add(values=blur(first), changes={SETTING: baseline_has_it})
    add("arm", {SETTING: not baseline_has_it}, values=blur(second))
    add("more", {SETTING: not baseline_has_it, "head.depth": 1}, values=blur(second))
    (remark,) = criteria_remarks(results(baseline="baseline"))
    mean = sum(WITHOUT.values()) / 3
    found = stats.ttest_rel(list(WITHOUT.values()), list(WITH.values())).confidence_interval(0.95)
    gain = 100 * (1 - sum(WITH.values()) / 3 / mean)
    names = ("baseline", "arm") if baseline_has_it else ("arm", "baseline")
    assert remark == (
        f"10 % sharper: yes, blur of {names[0]} is better than that of {names[1]} by {gain:.1f} % "
        f"[{100 * found.low / mean:.1f} %, {100 * found.high / mean:.1f} %]"
    )


@pytest.mark.parametrize(
    ("own", "seeds", "verdict"),
    [
        (WITH, (0,), "yes"),
        ({0: 0.97, 1: 1.02, 2: 0.96}, (0, 1, 2), "no"),
        ({0: 0.7, 1: 1.0, 2: 0.9}, (0, 1, 2), "not decided"),
        ({0: 1.2}, (0,), "no"),
        ({0: 0.9004}, (0,), "no"),
    ],
)
def test_verdicts(add: Add, results: Summarise, own: dict[int, float], seeds: tuple[int, ...], verdict: str) -> None:
    add(values=blur(WITHOUT), changes={SETTING: False}, seeds=seeds)
    add("arm", {SETTING: True}, values=blur(own), seeds=seeds)
    study = results(baseline="baseline")
    (remark,) = criteria_remarks(study)
    assert remark.startswith(f"10 % sharper: {verdict}, blur of arm")
    assert remark.endswith("(one seed: no interval)") is (len(seeds) == 1)
    assert ("by 9.96 % (" in remark) is (own == {0: 0.9004})
    assert f"10 % sharper: {verdict}, blur" in page(study, [], [])


def test_a_value_is_compared_with_all_its_references_in_every_arm(add: Add, results: Summarise) -> None:
    def values(own: float) -> Callable[[int], dict[str, float]]:
        likeness = {"final/likeness/a": 0.5, "final/likeness_own/a": own, "final/likeness_far/a": 0.1}
        return lambda seed: (
            likeness | {"final/likeness/b": 0.0, "final/likeness_own/b": 1.0, "final/likeness_far/b": 1.0}
        )

    add(values=values(0.3))
    add("arm", {"head.depth": 1}, values=values(0.6))
    add("lacks", {"head.depth": 3}, values=lambda seed: {"final/likeness/a": 0.5, "final/likeness_own/a": 0.2})
    assert criteria_remarks(results()) == [
        "right of all: yes in baseline, 0.5000 against own 0.3000, far 0.1000",
        "right of all: no in arm, 0.5000 against own 0.6000, far 0.1000",
    ]


def test_the_descriptions_criteria_name_settings_and_keys_that_exist() -> None:
    (gain,) = (c for metric in ImageReconstruction.metrics for c in metric.criteria)
    assert isinstance(gain, BetterWith)
    assert gain.setting.removeprefix("backbone.") in NanoDiT.__dataclass_fields__
    (metric,) = (metric for metric in ImageSwap.metrics if metric.criteria)
    (place,) = metric.criteria
    assert isinstance(place, BetterThan)
    assert place.key == metric.key.replace("{}", "both")
    assert {key for key, _ in place.references} < {one.key.replace("{}", "both") for one in metric.beside}
