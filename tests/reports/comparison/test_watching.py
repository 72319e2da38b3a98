"""`python -m urepa.compare watch=true`: a page that follows runs until they are finished."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from forks import HANGS, environment

from urepa.compare import check_watch, renew
from urepa.core.errors import UserError
from urepa.reports.comparison.waiting_page import reload_tag, waiting_page

Add = Callable[..., None]
Start = Callable[[Path], subprocess.Popen[str]]
ROOT = Path(__file__).parents[3]


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + HANGS
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)


@pytest.fixture
def start() -> Iterator[Callable[[Path], subprocess.Popen[str]]]:
    """start(folder): the command in this folder, which ends with the test."""
    begun: list[subprocess.Popen[str]] = []
    yield lambda folder: begun.append(_start(folder)) or begun[-1]  # type: ignore[func-returns-value]
    for process in begun:
        process.kill()


def _start(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "urepa.compare", "watch=true", "watch_every=1"]
    env = environment() | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env=env, preexec_fn=_take_interrupts, **pipes)  # type: ignore[call-overload]


def _take_interrupts() -> None:
    """A shell's background jobs ignore SIGINT, and their processes inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
def test_the_page_follows_the_runs_until_all_are_finished(add: Add, start: Start, tmp_path: Path) -> None:
    """At first nothing can be compared, and the page says where the runs are. The last page does not reload."""
    add(seeds=(0,), finished=False)
    page, tag = tmp_path / "report/index.html", reload_tag(1)
    process = start(tmp_path)
    until(page.exists)
    waiting = page.read_text()
    assert tag in waiting
    assert "cifar10+baseline/seed0" in waiting
    assert "<h2>Results</h2>" not in waiting
    shutil.rmtree(tmp_path / "outputs")
    add(seeds=(0,))
    until(lambda: "<h2>Results</h2>" in page.read_text())
    out, err = process.communicate(timeout=HANGS)
    assert process.returncode == 0, err
    assert "0 of 1 runs finished" in out
    assert out.count("1 of 1 runs finished") >= 2, "finished at two renewals in a row"
    assert tag not in page.read_text()
    assert "Results" in page.read_text()
    assert "Traceback" not in err


@pytest.mark.slow
def test_an_interrupt_ends_it_with_a_whole_report(add: Add, start: Start, tmp_path: Path) -> None:
    add(seeds=(0, 1))
    add("slow", {"head.depth": 1}, seeds=(0,), finished=False)
    page = tmp_path / "report/index.html"
    process = start(tmp_path)
    until(page.exists)
    assert reload_tag(1) in page.read_text()
    assert "unfinished: its last logged step is" in page.read_text()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=HANGS)
    assert process.returncode == 0, err
    assert "2 of 3 runs finished" in out
    assert reload_tag(1) not in page.read_text()
    assert "Traceback" not in err


def settings_of(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    select = {"experiment": None, "ablation": None, "tag": None, "ids": None}
    plain = {
        "store": None,
        "runs": str(tmp_path / "outputs"),
        "select": select,
        "baseline": None,
        "names": [],
        "order": [],
    }
    return (
        plain
        | {"report": str(tmp_path / "report"), "watch": True, "watch_every": 7, "publish": False, "at_step": None}
        | changes
    )


def test_a_page_before_the_first_run(tmp_path: Path) -> None:
    assert renew(settings_of(tmp_path)) == []
    html = (tmp_path / "report/index.html").read_text()
    assert reload_tag(7) in html
    assert "there are no runs in" in html
    assert "&lt;b&gt;" in waiting_page("<b>", [])


def test_keys_that_do_not_go_together(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="watch_every has no effect without watch=true"):
        check_watch(settings_of(tmp_path, watch=False), {"watch_every": "5"})
    with pytest.raises(UserError, match="publish=true would publish a report every time"):
        check_watch(settings_of(tmp_path, publish=True), {})
