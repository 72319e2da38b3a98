"""What a run's summary holds after several evaluations: the values of the last one alone, whosever they are."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from urepa.comparison.runs import find_folders, with_rows
from urepa.metrics import MetricsLog, last_values, number, read_rows
from urepa.runs import RunFolder
from urepa.session import _taken_over, _without_none
from urepa.tracking import _metrics


def test_what_an_evaluation_no_longer_reports_is_withdrawn() -> None:
    before = {"generation": ["final/fd/pixels", "floor/fd/pixels"], "knn": ["final/knn/tap", "final/knn/tap_by_t/0100"]}
    now = {"generation": ["final/fd/pixels"]}
    assert _taken_over(before, now) == (now | {"knn": before["knn"]}, {"floor/fd/pixels"})
    assert _taken_over(before, {}) == (before, set()), "what failed keeps its last values"
    assert _taken_over({}, now) == (now, set())


def test_a_key_belongs_to_who_wrote_it_last() -> None:
    own, withdrawn = _taken_over({"generation": ["final/fd/pixels"]}, {"inception": ["final/fd/pixels"]})
    assert own == {"generation": [], "inception": ["final/fd/pixels"]}
    assert not withdrawn
    assert _taken_over(own, {"generation": ["final/fd/dino"]})[1] == set(), "inception's value stays"


def test_null_takes_a_value_back(tmp_path: Path, compose: Callable[..., Any]) -> None:
    log = MetricsLog(tmp_path / "run" / "seed0" / "metrics.jsonl")
    log.path.parent.mkdir(parents=True)
    log.append({"step": 4, "final/fd/pixels": 2.0, "floor/fd/pixels": 1.0})
    log.append({"step": 4, "final/fd/pixels": 3.0, "floor/fd/pixels": None})
    rows = read_rows(log.path)
    assert _without_none(last_values(rows, 4)) == {"final/fd/pixels": 3.0}
    assert math.isnan(number(None))
    assert {m.key: str(m.value) for m in _metrics(rows[1])} == {"final/fd/pixels": "3.0", "floor/fd/pixels": "nan"}
    assert json.loads(log.path.read_text().splitlines()[1])["floor/fd/pixels"] is None
    RunFolder(log.path.parent).adopt(compose("tracking=none"))
    (run,) = with_rows(find_folders(str(tmp_path)))
    assert run.last("final/fd/pixels") == 3.0
    floor = run.last("floor/fd/pixels")
    assert floor is not None
    assert math.isnan(floor), "as MLflow has it"
