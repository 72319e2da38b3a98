"""The correlation of early values with the gain at the end: its arithmetic, its arms, its steps and its columns."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from itertools import permutations
from math import factorial, isnan
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from urepa.compare import write_report
from urepa.reports.comparison.page import page
from urepa.reports.comparison.predictors import LEAST, Predictor, predictors, predictors_text
from urepa.reports.comparison.results import Results
from urepa.reports.comparison.statistics import rank_correlation

Add, Summarise = Callable[..., None], Callable[..., Results]
DIFFUSION, TOKEN, FD, COSINE = "val/diffusion", "val/token", "final/fd/cnn", "tap/*/grad_cosine"
ONLY = (DIFFUSION, TOKEN, "eval/", "final/", "tap/")
SEEDS = (0, 1)


def test_the_correlation_is_scipys_and_p_that_of_all_orders() -> None:
    rng = np.random.default_rng(0)
    for ties in (False, True):
        x, y = rng.standard_normal((2, 6))
        x[1] = x[4] if ties else x[1]
        rho, p = rank_correlation(x, y)
        assert rho == pytest.approx(stats.spearmanr(x, y).statistic)
        every = [abs(stats.spearmanr(x, order).statistic) for order in permutations(y)]
        assert p == pytest.approx(np.mean([one >= abs(rho) - 1e-9 for one in every]))


@pytest.mark.parametrize("arms", [5, 7])
def test_of_all_orders_only_two_are_as_perfect(arms: int) -> None:
    values = np.arange(arms) ** 3.0
    assert rank_correlation(values, -values) == (pytest.approx(-1), pytest.approx(2 / factorial(arms)))


def test_p_of_many_arms_is_that_of_the_t_distribution() -> None:
    """Of 30 arms SciPy's approximation holds, to the error of 9,999 random orders."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal(30)
    for share in (0.0, 0.3):
        y = share * x + rng.standard_normal(30)
        rho, p = rank_correlation(x, y)
        expected = stats.spearmanr(x, y)
        assert rho == pytest.approx(expected.statistic)
        assert p == pytest.approx(expected.pvalue, abs=0.02)
    assert rank_correlation(x, x)[1] == 1 / 10_000, "no p is 0"


def test_without_spread_there_is_no_correlation() -> None:
    assert all(map(isnan, rank_correlation(np.ones(6), np.arange(6.0))))
    assert all(map(isnan, rank_correlation(np.arange(6.0), np.ones(6))))


def arm(add: Add, name: str, place: int, token: float | None = None, **changes: object) -> None:
    """Two seeds. The higher `place`, the lower are diffusion loss and FD at the end. At step 200 the token loss is
    `token` on average over the seeds, but equal in seed 0 of all arms."""

    def early(seed: int) -> dict[int, dict[str, float]]:
        rows: dict[int, dict[str, float]] = {100: {DIFFUSION: 0.9}, 200: {DIFFUSION: 0.8 - place**2}}
        rows[200] |= {"eval/fd/cnn": 300.0 + place} | ({} if token is None else {TOKEN: 0.9 if seed == 0 else token})
        return rows

    ends = {DIFFUSION: 0.5 - 0.01 * place, FD: 100.0 - place}
    add(name, changes, seeds=SEEDS, values=lambda seed: ends, course=early, only=ONLY)


def by_keys(found: list[Predictor]) -> dict[tuple[str, str], Predictor]:
    return {(one.early.key, one.gain.key): one for one in found}


@pytest.fixture
def seven(add: Add) -> None:
    """The baseline and six arms of other λ, in the order of their gains; their token losses have the opposite order
    but for the last two arms."""
    arm(add, "baseline", 0, 0.9)
    for place, token in enumerate((0.8, 0.7, 0.6, 0.5, 0.3, 0.4), 1):
        arm(add, f"arm{place}", place, token, **{"loss.lambda_max": 0.5 + 0.05 * place})


@pytest.mark.usefixtures("seven")
def test_early_means_over_seeds_are_compared_with_gains(results: Summarise) -> None:
    found = by_keys(predictors(results(baseline="baseline")))
    token = found[TOKEN, DIFFUSION]
    assert (token.step, len(token.arms)) == (200, 7), "the baseline is one of them; at step 100 there is no token loss"
    assert token.rho == pytest.approx(stats.spearmanr([7, 6, 5, 4, 3, 1, 2], range(7)).statistic)
    fd = found[FD, FD]
    assert (fd.early.label, fd.step) == ("FD(cnn)", 200), "of the evaluation in training, not of the end"
    assert (fd.rho, fd.p) == (pytest.approx(1), pytest.approx(2 / 5040)), "a gain is positive, also where low is good"
    assert (DIFFUSION, FD) not in found, "at step 100 it is the same in all arms"
    assert (COSINE, FD) not in found, "these runs have the same cosines"
    assert len(found) == 4
    assert min(one.p_holm for one in found.values()) == pytest.approx(4 * 2 / 5040), "over all rows of the table"


@pytest.mark.usefixtures("seven")
def test_incomparable_arms_are_left_out(add: Add, results: Summarise) -> None:
    """With another grid of the teacher the token loss is another quantity, and the diffusion loss is not."""
    arm(add, "grid", 9, 0.1, **{"teacher.grid": [8, 8]})
    found = by_keys(predictors(results(baseline="baseline")))
    assert len(found[TOKEN, DIFFUSION].arms) == 7
    assert len(found[FD, DIFFUSION].arms) == 8
    assert found[TOKEN, DIFFUSION].arms == tuple(one for one in found[FD, DIFFUSION].arms if one != "grid")


@pytest.mark.slow
@pytest.mark.usefixtures("seven")
def test_the_report_has_the_table_and_says_how_little_it_means(results: Summarise, tmp_path: Path) -> None:
    study = results(baseline="baseline")
    correlations = predictors(study)
    html = page(study, [], [], correlations=correlations)
    section = html[html.index('<section id="predictors">') : html.index("</section>", html.index('id="predictors"'))]
    assert '<a href="#predictors">' in html
    assert section.count("<tr>") == 1 + len(correlations)
    for text in (section, predictors_text(study, correlations)):
        assert "over at most 7 arms" in text
        assert "4 correlations were tried" in text
    write_report(study, [], tmp_path / "report")
    assert "4 correlations were tried" in (tmp_path / "report" / "table.md").read_text()
    rows = list(csv.DictReader(io.StringIO((tmp_path / "report" / "predictors.csv").read_text())))
    assert len(rows) == 4
    (token,) = [row for row in rows if (row["early value"], row["gain"]) == (TOKEN, DIFFUSION)]
    assert float(token["rho"]) == by_keys(correlations)[TOKEN, DIFFUSION].rho
    assert token["labels"] == "baseline; arm1; arm2; arm3; arm4; arm5; arm6"


@pytest.mark.usefixtures("seven")
def test_arms_of_one_early_value_are_in_the_row(add: Add, results: Summarise) -> None:
    """An eighth arm with the token loss of another one, as before different stops: there are seven values."""
    arm(add, "later", 9, 0.4, **{"loss.lambda_max": 2.0})
    assert len(by_keys(predictors(results(baseline="baseline")))[TOKEN, FD].arms) == 8


def test_six_values_of_seven_arms_are_too_few(add: Add, results: Summarise) -> None:
    for place in range(LEAST):
        name, token = (f"arm{place}", max(0.9 - 0.1 * place, 0.4)) if place else ("baseline", 0.9)
        arm(add, name, place, token, **{"loss.lambda_max": 0.5 + 0.05 * place})
    found = by_keys(predictors(results(baseline="baseline")))
    assert (TOKEN, FD) not in found
    assert (FD, FD) in found


@pytest.mark.slow
def test_six_arms_are_too_few(add: Add, results: Summarise, tmp_path: Path) -> None:
    """And the file of an earlier report does not stay beside the new one."""
    for place in range(LEAST - 1):
        arm(add, f"arm{place}" if place else "baseline", place, 0.9, **{"loss.lambda_max": 0.5 + 0.05 * place})
    study = results(baseline="baseline")
    assert (predictors(study), predictors_text(study, [])) == ([], "")
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "predictors.csv").write_text("of before")
    write_report(study, [], tmp_path / "report")
    assert not (tmp_path / "report" / "predictors.csv").exists()
    assert 'id="predictors"' not in (tmp_path / "report" / "index.html").read_text()
