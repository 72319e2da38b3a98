"""The ranking: arms in the order of their gain, with the cost of a step and when each is as good as the baseline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from urepa.core.escaping import markdown as md
from urepa.reports.comparison.comparable import incomparable_keys
from urepa.reports.comparison.page import page
from urepa.reports.comparison.ranking import ranking, ranking_text
from urepa.reports.comparison.results import Results

Add, Summarise = Callable[..., None], Callable[..., Results]
STEPS = 600
FD, CIRCULAR, PROBE = "final/fd/cnn", "final/fd/own", "final/tap_linear_probe"
ONLY = ("val/diffusion", "final/", "eval/", "images_per_s")


def arm(add: Add, name: str, fd: float, seconds: float, **changes: Any) -> None:
    """Three seeds whose FD at the end is `fd` and a little more, by its own amount in each arm, and 300 at step 100."""
    add(
        name,
        changes,
        values=lambda seed: {FD: fd + 0.001 * fd * seed**2, CIRCULAR: 1.0, "final/circular/own": 1.0, PROBE: fd / 1000},
        course=lambda seed: {100: {"eval/fd/cnn": 300.0}},
        only=ONLY,
        summary={"seconds": {"training": seconds * STEPS, "this_process": 1.0}},
    )


@pytest.mark.slow
def test_arms_stand_in_the_order_of_their_gain(add: Add, results: Summarise) -> None:
    arm(add, "baseline", 100.0, 2.0)
    arm(add, "worse", 120.0, 1.0, **{"loss.lambda_max": 0.25})
    arm(add, "best", 80.0, 3.0, **{"loss.lambda_max": 0.75})
    found = results()
    table = ranking(found)
    assert table is not None
    assert table.title == "ranking by FD(cnn)", "not by the FD of a teacher's features"
    assert table.headers[:4] == ("arm", "FD(cnn)\u00a0↓", "gain over baseline", "cost of a step")
    assert [row[0] for row in table.rows] == ["best", "baseline", "worse"]
    best, baseline, worse = table.rows
    assert best[2].startswith("−20")
    assert best[2].endswith("●")
    assert (best[3], baseline[3], worse[3]) == ("3 s (150 %)", "2 s (100 %)", "1 s (50 %)")
    assert baseline[2] == "–"
    assert worse[-2] == "not reached"
    probe = table.headers.index("linear probe of the tap\u00a0↑")
    assert float(best[probe].partition(" ")[0]) == 0.08
    html = page(found, [], [])
    assert '<section id="ranking">' in html
    assert html.index(">best</th>", html.index('id="ranking"')) < html.index(">worse</th>", html.index('id="ranking"'))
    assert ranking_text(found).startswith("\nRanking by FD")
    assert md("best") in ranking_text(found)


@pytest.mark.slow
def test_one_arm_has_no_ranking(add: Add, results: Summarise) -> None:
    arm(add, "baseline", 100.0, 2.0)
    arm(add, "best", 80.0, 3.0, **{"loss.lambda_max": 0.75})
    found = results()
    assert ranking(found) is None
    assert ranking_text(found) == ""
    assert '<section id="ranking">' not in page(found, [], [])


def test_settings_of_a_loss_without_a_teacher_make_its_own_term_incomparable() -> None:
    def of(name: str, target: str, **settings: str) -> dict[str, str]:
        return {
            f"loss.{key}": value
            for key, value in {"_target_": f"urepa.method.losses.{name}.{target}", **settings}.items()
        }

    hot, cold = (of("dispersive", "Dispersive", tap="mid", temperature=value) for value in ("1.0", "0.5"))
    assert incomparable_keys("val/dispersive", hot, cold) == ["loss.temperature"]
    assert incomparable_keys("val/diffusion", hot, cold) == []
    near, far = (of("self_representation", "SelfRepresentation", less_noise=value) for value in ("0.1", "0.2"))
    assert incomparable_keys("val/self_distance", near, far) == ["loss.less_noise"]
    sync, repa = of("layer_sync", "LayerSync", student="mid"), of("urepa_loss", "URepaLoss", level="token")
    assert "loss._target_" in incomparable_keys("val/token", sync, repa)
    assert incomparable_keys("val/diffusion", sync, repa) == []
