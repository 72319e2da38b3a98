"""Made-up studies on disk, and the results of the command for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_up import changed, write_run

from urepa.reports.comparison.arms import ComparedArms, group_runs
from urepa.reports.comparison.read_runs import find_folders, load_curves
from urepa.reports.comparison.results import Results, summarise


@pytest.fixture(scope="session")
def config(compose: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """The CIFAR-10 experiment's config: λ 0.5, w 3, v, linear β, a head of depth 2, 8,000 images."""
    return compose("+experiment=cifar10", "data.source=folder")


@pytest.fixture
def add(config: dict[str, Any], tmp_path: Path) -> Callable[..., None]:
    """add(ablation, changes, seeds, values(seed) -> last values, course(seed) -> more by step, ...): runs below
    tmp_path/outputs."""

    def added(
        ablation: str = "baseline",
        changes: dict[str, Any] | None = None,
        seeds: tuple[int, ...] = (0, 1, 2),
        values: Callable[[int], dict[str, float]] = lambda seed: {},
        name: str | None = None,
        course: Callable[[int], dict[int, dict[str, float]]] = lambda seed: {},
        **options: Any,
    ) -> None:
        for seed in seeds:
            folder = tmp_path / "outputs" / (name or f"cifar10+{ablation}") / f"seed{seed}"
            own = changed(config, {"seed": seed} | (changes or {}))
            write_run(
                folder, own, ablation=ablation, experiment="cifar10", last=values(seed), course=course(seed), **options
            )

    return added


@pytest.fixture
def study(tmp_path: Path) -> Callable[..., ComparedArms]:
    """study(order, baseline, names): the study of all runs that were added."""

    def grouped(order: tuple[str, ...] = (), baseline: str | None = None, names: tuple[str, ...] = ()) -> ComparedArms:
        runs = load_curves(find_folders(str(tmp_path / "outputs")))
        return group_runs(runs, list(order), baseline, names)

    return grouped


@pytest.fixture
def results(study: Callable[..., ComparedArms]) -> Callable[..., Results]:
    return lambda *arguments, **options: summarise(study(*arguments, **options))
