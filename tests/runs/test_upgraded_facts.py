"""What a summary of an earlier version says of a run's evaluation is what this version says."""

from __future__ import annotations

import json
from typing import Any

from earlier_forms import without

from urepa.core.nested_dicts import flatten
from urepa.reports.comparison.evaluation_protocol import protocol
from urepa.reports.comparison.read_runs import as_text
from urepa.runs.mlflow_run import FACTS_TAG, end_tags, facts_in
from urepa.runs.run_folder import facts_of
from urepa.runs.upgrades import upgrade, upgrade_flat


def before(evaluated: dict[str, Any]) -> dict[str, Any]:
    found = without(evaluated, "stride", "positions", "ema_warmup", "max_skipped")
    assert found["evaluation"] != evaluated["evaluation"]
    return found


def test_old_and_new_summaries_give_the_same_facts_of_an_evaluation(evaluated: dict[str, Any]) -> None:
    """In its folder; and as a tag in MLflow, written by that version, or by this one from that version's folder."""
    old, facts = before(evaluated), {"validation_set": "v", "step": 600}
    summaries = {name: facts | {"evaluation": c["evaluation"]} for name, c in (("old", old), ("new", evaluated))}
    expected = protocol(as_text(evaluated), summaries["new"])
    assert protocol(as_text(upgrade(old)), facts_of(summaries["old"])) == expected
    params = upgrade_flat({key: str(value) for key, value in flatten(old).items()}, 0)
    tags = {FACTS_TAG: json.dumps(summaries["old"])}
    assert protocol(params, facts_in(tags)) == expected
    assert facts_in(end_tags({}, summaries["old"])) == facts_in(end_tags({}, summaries["new"])) == summaries["new"]


def test_one_of_several_evaluations_is_of_an_earlier_version(evaluated: dict[str, Any]) -> None:
    """A later version repeats one evaluation of a run, and the others stay as they were stored."""
    both = {"evaluation": evaluated["evaluation"] | {"once": before(evaluated)["evaluation"]["generation"]}}
    found = facts_of(both)["evaluation"]
    assert found["once"] == found["generation"] == evaluated["evaluation"]["generation"]
    assert "stride" not in both["evaluation"]["once"]["encoders"]["efficientnet_lite0"], "the summary is left alone"


def test_facts_without_an_evaluation_stay_without() -> None:
    assert facts_of({"step": 3}) == {"step": 3}
    assert facts_in({}) == {}
