"""A progress bar names its subject."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from urepa.cli import CONF
from urepa.core import progress
from urepa.evaluation.context import Context, run_each


def test_descriptions_of_nested_bars_begin_with_the_subject(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.prefix_bars("knn"):
        progress.bar(total=3, desc="features", unit="image").close()
    progress.bar(total=3, desc="features", unit="image").close()
    first, *_, second = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if line.strip()]
    assert first.startswith("knn: features:   0%")
    assert second.startswith("features:   0%")


@pytest.mark.slow
def test_all_bars_are_made_in_one_place_and_have_a_description() -> None:
    here = Path(CONF).parent
    files = [p for place in ("urepa", "launchers") for p in (here / place).rglob("*.py") if p.name != "progress.py"]
    bars = 0
    for file in files:
        for call in (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)):
            name = ast.unparse(call.func)
            assert name not in ("tqdm", "trange"), f"{file}:{call.lineno}"
            if name == "progress.bar":
                bars += 1
                assert {"desc", "unit"} <= {keyword.arg for keyword in call.keywords}, f"{file}:{call.lineno}"
    assert bars > 15


def test_bars_of_an_evaluation_have_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    context: Any = None

    def make(name: str) -> Callable[[Context], dict[str, float]]:
        def walk(_: Context) -> dict[str, float]:
            progress.bar(total=1, desc=f"features of {name}", unit="image").close()
            return {f"final/{name}": 1.0}

        return walk

    found = run_each(context, {"knn": "a", "probe": "b"}, make)
    assert found.metrics == {"final/a": 1.0, "final/b": 1.0}
    said = capsys.readouterr().err
    assert "knn: features of a:" in said
    assert "probe: features of b:" in said


def test_bars_of_transformers_are_hidden_and_those_of_the_hub_are_not() -> None:
    from huggingface_hub.utils import are_progress_bars_disabled
    from transformers.utils import logging

    logging.enable_progress_bar()
    assert logging.is_progress_bar_enabled()
    progress.hide_loading()
    assert not logging.is_progress_bar_enabled()
    assert not are_progress_bars_disabled()
