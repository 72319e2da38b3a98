"""The schema of `urepa.compare`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from urepa.core.declared_keys import LAST_STEP, setting


@dataclass
class Select:
    experiment: Any = setting("a name, a list or a pattern as in a shell; also without `select.`", None)
    ablation: Any = setting("the same", None)
    tag: str | None = setting("KEY=VALUE, a tag of MLflow or a setting", None)
    ids: Any = setting("MLflow run ids or run folders, one or a list", None)


@dataclass
class Compare:
    store: str | None = setting(
        "an MLflow URI, sqlite:///mlflow.db or http://...; null: run folders", None, section="which runs"
    )
    runs: str = setting("a folder of runs, or a pattern; without store", "outputs")
    select: Select = field(default_factory=Select)
    baseline: str | None = setting(
        "an arm's label, its ablation, or KEY=VALUE,... of its config; null: chosen, with the reason in the report",
        None,
        section="how they are compared",
    )
    at_step: int | None = setting(
        "compares all runs by their values at this step, also of runs that ended early or later; null: at their ends",
        None,
        ge=1,
        le=LAST_STEP,
    )
    names: list[str] = setting(
        "LABEL=FOLDER: labels of the arms with the runs FOLDER/seed...; other labels are their differences", []
    )
    order: list[str] = setting("order of the arms in tables; others follow by name")
    report: str = setting("a folder for index.html, tables and figures", "report", section="what is written")
    publish: bool = setting("with store: also upload the report to MLflow, as artifacts of a run", False)
    out: str | None = setting("a file for everything as JSON", None)
    watch: bool = setting(
        "renew the report until all runs are finished, or Ctrl-C; its page reloads itself",
        False,
        section="while runs train",
    )
    watch_every: int = setting("seconds between two renewals", 30, ge=1, le=86_400)
