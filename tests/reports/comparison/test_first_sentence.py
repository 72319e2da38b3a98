"""The first finding, and the cautions directly after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from urepa.reports.comparison.first_sentence import cautions, verdict
from urepa.reports.comparison.page import page
from urepa.reports.comparison.results import Results
from urepa.reports.comparison.statistics import detection_power, factor_of_two_seeds, paired_interval
from urepa.reports.comparison.tables import markdown, terminal

Add, Summarise = Callable[..., None], Callable[..., Results]
NOISE = np.random.default_rng(7).normal(0, 0.001, (20, 10))  # by arm and seed; in these draws chance marks nothing


def values(arm: int, **effects: float) -> Callable[[int], dict[str, float]]:
    """Every validated loss of an arm: noise, plus `effects`."""
    base = {"val/diffusion": 0.4, "val/token": 0.5, "val/manifold": 0.03, "val/x0_error": 0.26}
    base |= {"final/tap_knn": 0.3, "final/fd/pixels": 2.0, "final/lds/tap": 0.2}

    def of(seed: int) -> dict[str, float]:
        return {
            key: base[key] + float(NOISE[(arm + 3 * i) % 20, seed]) + effects.get(key.replace("/", "_"), 0.0)
            for i, key in enumerate(base)
        }

    return of


def study(add: Add, arms: dict[str, dict[str, float]], seeds: tuple[int, ...] = (0, 1, 2), **changes: Any) -> None:
    """A baseline with λ = 0.5, and arms with other head depths and these effects."""
    add(seeds=seeds, values=values(0))
    for i, (name, effects) in enumerate(arms.items()):
        add(name, {"head.depth": 3 + i} | changes, seeds=seeds, values=values(1 + i, **effects))


@pytest.mark.slow
def test_one_arm_that_differs_in_one_metric(add: Add, results: Summarise) -> None:
    add(changes={"loss.lambda_max": 0.0}, seeds=(0, 1), values=values(0), name="a")
    add(changes={"loss.lambda_max": 0.5}, seeds=(0, 1), values=values(1, val_diffusion=-0.1), name="b")
    found = results()
    said = (
        "Two seeds, which can hardly tell an effect from chance, suggest that λ=0.5 lowers the diffusion loss, which "
        "is better; nothing else differs beyond noise; the token loss and the manifold loss are not counted for λ=0.5, "
        "which trains with another weight on them."
    )
    assert verdict(found) == said
    assert markdown(found).startswith(said)
    assert terminal(found, 100).startswith(said)
    body = page(found, [], [])
    body = body[body.index("<body>") :]
    assert body.index(said) < body.index("<strong>Caution.</strong> Two seeds") < body.index("<table")


def test_metrics_that_contradict_each_other(add: Add, results: Summarise) -> None:
    study(add, {"arm": {"val_token": -0.1, "final_fd_pixels": 0.5, "final_tap_knn": 0.2}})
    assert verdict(results()) == (
        "arm lowers the token loss, which is better, and raises the k-NN on the tap, which is better, but raises "
        "FD(pixels), which is worse; nothing else differs beyond noise; 3 seeds."
    )


def test_metrics_without_a_direction_are_neither_better_nor_worse(add: Add, results: Summarise) -> None:
    study(add, {"arm": {"final_lds_tap": 0.1}})
    said = verdict(results())
    assert said.startswith("arm raises LDS: tap, which is neither better nor worse; nothing else differs")


def test_nothing_differs(add: Add, results: Summarise) -> None:
    study(add, {"arm": {}})
    assert verdict(results()) == "arm does not differ from the baseline beyond noise in any of 8 metrics; 3 seeds."
    study_of = {"second": {}, "third": {}}
    for i, name in enumerate(study_of):
        add(name, {"head.depth": 8 + i}, values=values(7 + i))
    assert verdict(results()) == "None of 3 arms differs from the baseline beyond noise in any of 8 metrics; 3 seeds."


@pytest.mark.slow
def test_several_arms_are_named_up_to_three_and_counted_from_there(add: Add, results: Summarise) -> None:
    better = {"val_token": -0.1}
    study(add, {"a": better, "b": better | {"val_diffusion": 0.2}, "c": {}}, seeds=(0, 1, 2, 3))
    assert verdict(results()) == (
        "a and b lower the token loss, which is better; b raises the diffusion loss, which is worse; nothing else "
        "differs beyond noise; 4 seeds."
    )
    for i, name in enumerate("defg"):
        add(name, {"head.depth": 10 + i}, seeds=(0, 1, 2, 3), values=values(8 + i, val_token=-0.1))
    assert verdict(results()).startswith("6 of 7 arms lower the token loss, which is better; b raises the diffusion")


@pytest.mark.slow
def test_many_metrics_are_counted_and_many_clauses_summed_up(add: Add, results: Summarise) -> None:
    every = {"val_token": -0.1, "val_diffusion": -0.1, "val_manifold": -0.02, "val_x0_error": -0.1}
    study(add, {"arm": every})
    assert verdict(results()).startswith(
        "arm lowers the diffusion loss, the token loss, the manifold loss and 1 more, which is better; nothing else"
    )
    for i, effect in enumerate(({"val_token": 0.2}, {"val_diffusion": 0.2}, {"val_x0_error": -0.2})):
        add(f"arm{i}", {"head.depth": 11 + i}, values=values(8 + i, **effect))
    said = verdict(results())
    assert said.count(";") == 4, "three clauses, what is left, and the seeds"
    assert "other differences are beyond noise, " in said or "other difference is beyond noise, " in said
    assert "nothing else" not in said


@pytest.mark.parametrize(
    ("seeds", "said"),
    [
        ((0,), "There is one run only, so nothing is compared: its values are shown as they are."),
        ((0, 1), "There is one arm only, of 2 seeds: its values are shown, nothing is compared."),
    ],
)
def test_without_another_arm(add: Add, results: Summarise, seeds: tuple[int, ...], said: str) -> None:
    add(seeds=seeds)
    assert verdict(results()) == said
    assert cautions(results()) == []


def test_one_seed_claims_nothing(add: Add, results: Summarise) -> None:
    study(add, {"arm": {"val_token": -0.1}}, seeds=(0,))
    assert verdict(results()) == "One seed an arm: no difference can be told from noise, so none is claimed."


def test_unpaired_seeds_are_reported(add: Add, results: Summarise) -> None:
    study(add, {"arm": {"val_token": -0.1}}, **{"data.limit": 4000})
    assert verdict(results()).endswith("; 3 seeds, not paired.")
    add("paired", {"head.depth": 9}, seeds=(0, 1), values=values(8))
    assert verdict(results()).endswith(
        "; 2 to 3 seeds, not all paired, of which two can hardly tell an effect from chance."
    )
    (caution,) = cautions(results())
    assert caution.startswith("Two seeds (paired) can hardly tell")


def test_an_arm_without_a_test_is_reported(add: Add, results: Summarise) -> None:
    study(add, {"arm": {}})
    add("alone", {"head.depth": 9}, seeds=(0,), values=values(8))
    assert "; alone could not be tested; 3 seeds." in verdict(results())


@pytest.mark.slow
def test_a_difference_without_holms_correction_is_no_finding(add: Add, results: Summarise) -> None:
    """The interval of one of seven arms excludes 0 alone, but not after Holm's correction."""
    base = {0: 0.30, 1: 0.50, 2: 0.40}
    add(values=lambda seed: {"val/diffusion": base[seed]})
    add("clear", {"head.depth": 3}, values=lambda seed: {"val/diffusion": base[seed] + 0.05 + 0.012 * seed})
    for i in range(6):
        add(
            f"null{i}",
            {"head.depth": 4 + i},
            values=lambda seed: {"val/diffusion": base[seed] + (-0.01, 0.01, 0.0)[seed]},
        )
    assert results().rows[1].differences["val/diffusion"].mark == "◐"
    assert "clear" not in verdict(results())


def test_the_statements_on_two_seeds_agree_with_computation() -> None:
    """The interval of two differences, the condition under which it excludes 0, and how often it finds an effect."""
    rng = np.random.default_rng(0)
    pairs = rng.normal(2.0, 1.0, (200_000, 2))
    found = paired_interval(pairs)
    distance = np.abs(pairs[:, 0] - pairs[:, 1])
    np.testing.assert_allclose(found.high - found.mean, factor_of_two_seeds() * distance, rtol=1e-9)
    assert factor_of_two_seeds() == pytest.approx(np.tan(0.95 * np.pi / 2) / 2)  # t with one degree is Cauchy's
    marked = (found.low > 0) | (found.high < 0)
    assert np.array_equal(marked, distance < np.abs(found.mean) / factor_of_two_seeds())
    assert marked.mean() == pytest.approx(detection_power(2.0, 2), abs=0.004)
    five = paired_interval(rng.normal(2.0, 1.0, (50_000, 5)))
    assert ((five.low > 0) | (five.high < 0)).mean() == pytest.approx(detection_power(2.0, 5), abs=0.005)


@pytest.mark.slow
def test_two_seeds_are_cautioned_loudly(add: Add, results: Summarise) -> None:
    study(add, {"arm": {"val_token": -0.1}}, seeds=(0, 1))
    (caution,) = cautions(results())
    assert caution.startswith(
        "Two seeds can hardly tell an effect from chance. With two pairs Student's t has one degree"
    )
    assert "± 6.35 times the distance" in caution
    assert "closer together than 16 % of their mean" in caution
    assert "found in 18 % of comparisons with two seeds, in 47 % with three and in 91 % with five" in caution
    assert markdown(results()).split("\n\n")[1].startswith("**Caution:** Two seeds")
    assert terminal(results(), 100).splitlines()[1].startswith("CAUTION: Two seeds")
    add("other", {"head.depth": 9}, seeds=(7, 8), values=values(8))
    (caution,) = cautions(results())
    assert "4.3 to 12.7 standard errors" in caution
    assert stats.t.ppf(0.975, [2, 1]) == pytest.approx([4.3, 12.7], abs=0.01)


def test_three_seeds_are_not_cautioned(add: Add, results: Summarise) -> None:
    study(add, {"arm": {}})
    assert cautions(results()) == []


def test_an_arm_that_is_the_baseline_itself_and_one_that_diverged(add: Add, results: Summarise) -> None:
    study(add, {"gone": {"val_token": float("nan")}})
    add("same", {"head.depth": 9}, values=values(0))
    assert cautions(results()) == [
        "same: every compared value is the baseline's own; its change had no effect.",
        "gone: the token loss not finite in 3 of 3 seeds, so not compared.",
    ]


def test_an_arm_that_is_a_list_is_quoted(add: Add, results: Summarise) -> None:
    for lam, depth, effect in ((0.0, 2, 0.0), (0.5, 3, -0.1), (0.5, 2, -0.1)):
        own = values(depth + int(2 * lam), val_diffusion=effect)
        add(changes={"loss.lambda_max": lam, "head.depth": depth}, name=f"{lam},{depth}", values=own)
    said = verdict(results(baseline="loss.lambda_max=0,head.depth=2"))
    assert said.startswith("“depth=2, λ=0.5” and “depth=3, λ=0.5” lower the diffusion loss, which is better")


@pytest.mark.parametrize(
    ("key", "value", "left_out"),
    [
        (
            "loss.lambda_max",
            0.0,
            "the token loss, the manifold loss and k-NN: head are not counted for b, which trains with",
        ),
        (
            "loss.lambda_max",
            0.8,
            "the token loss, the manifold loss and k-NN: head are not counted for b, which trains with",
        ),
        ("loss.manifold_weight", 0, "the manifold loss is not counted for b, which trains with another weight on it"),
    ],
)
def test_metrics_trained_with_another_weight_are_only_in_tables(
    add: Add, results: Summarise, key: str, value: float, left_out: str
) -> None:
    """A control's head is never trained towards the teacher. Another arm with the same weights is judged as usual."""
    worse = {"val_token": 0.1, "val_manifold": 0.2}
    of = {name: values(i, **effects) for i, (name, effects) in enumerate((("a", {}), ("b", worse), ("c", worse)))}
    for i, (name, changes) in enumerate((("a", {}), ("b", {key: value}), ("c", {"head.depth": 3}))):
        effect = 0.3 * (i > 0)
        add(name, changes, values=lambda s, n=name, e=effect: of[n](s) | {"final/knn/head": 0.5 - e * (1 + s / 100)})
    found = results(baseline="a")
    row = {row.arm.label: row for row in found.rows}["b"]
    assert {row.differences[k].mark for k in ("val/token", "val/manifold", "final/knn/head")} == {"●"}
    said = verdict(found)
    assert left_out in said
    if key == "loss.manifold_weight":
        judged = (
            "b and c lower k-NN: head, which is worse, and raise the token loss, which is worse; c raises the manifold"
        )
    else:
        judged = "c lowers k-NN: head, which is worse, and raises the token loss and the manifold loss, which is worse;"
    assert said.startswith(judged)
    assert "nothing else differs" in said


def test_only_metrics_trained_with_another_weight_differ(add: Add, results: Summarise) -> None:
    """The other differences are the same in every seed, to the last bit: none has an interval."""
    keys = ("val/diffusion", "val/x0_error", "final/tap_knn")
    for lam in (0.0, 0.5):
        own = dict.fromkeys(keys, 0.25 + lam)
        add(str(lam), {"loss.lambda_max": lam}, values=lambda s, x=lam, o=own: o | {"val/token": 0.5 - x + s * x / 99})
    said = verdict(results(baseline="0.0"))
    assert said.startswith("No difference is tested: the token loss")


def test_two_seeds_are_cautioned_beside_arms_with_more(add: Add, results: Summarise) -> None:
    study(add, {"arm": {"val_diffusion": -0.1}})
    assert verdict(results()).endswith("; 3 seeds.")
    add("short", {"head.depth": 9}, seeds=(0, 1), values=values(8))
    assert verdict(results()).endswith("; 2 to 3 seeds, of which two can hardly tell an effect from chance.")


def test_two_seeds_without_a_difference_do_not_show_equality(add: Add, results: Summarise) -> None:
    study(add, {"arm": {}}, seeds=(0, 1))
    assert verdict(results()) == (
        "arm does not differ from the baseline beyond noise in any of 8 metrics; 2 seeds, which can hardly tell an "
        "effect from chance."
    )
