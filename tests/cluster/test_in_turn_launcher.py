"""Runs of `-m` one after the other: failures are listed at the end and do not stop the other runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hydra.core.utils import JobReturn

from urepa.cluster.in_turn_launcher import InTurn
from urepa.core.one_line_errors import ReportedError


class Recorded(InTurn):
    """Replaces Hydra's task; a run's name decides what it does."""

    def __init__(self) -> None:
        self.begun: list[str] = []

    def _run(self, overrides: Sequence[str], number: int) -> JobReturn:
        run = overrides[0]
        self.begun.append(f"{number} {run}")
        endings: dict[str, Any] = {
            "run=a": ReportedError("it is not finished"),
            "run=b": RuntimeError("out of\nmemory"),
            "run=stop": SystemExit(130),
        }
        if run in endings:
            raise endings[run]
        return JobReturn()


def test_failures_are_listed_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    launcher = Recorded()
    with pytest.raises(SystemExit) as ended:
        launcher.launch([[f"run={name}", "evaluation=knn"] for name in "abc"], 0)
    assert ended.value.code == 1
    assert launcher.begun == ["0 run=a", "1 run=b", "2 run=c"]
    said = capsys.readouterr()
    assert said.out.splitlines() == ["[1/3] run=a", "[2/3] run=b", "[3/3] run=c"]
    assert said.err.splitlines()[-3:] == [
        "error: 2 of 3 failed, the others are done:",
        "error: run=a: it is not finished",
        "error: run=b: RuntimeError: out of memory",
    ]
    assert "Traceback" in said.err, "of what is no user's mistake"


def test_an_interrupt_ends_all_runs() -> None:
    launcher = Recorded()
    with pytest.raises(SystemExit) as ended:
        launcher.launch([["run=stop"], ["run=c"]], 0)
    assert ended.value.code == 130
    assert launcher.begun == ["0 run=stop"]


def test_nothing_is_printed_if_all_runs_succeed(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(Recorded().launch([["run=c"], ["run=d"]], 0)) == 2
    assert capsys.readouterr().err == ""
