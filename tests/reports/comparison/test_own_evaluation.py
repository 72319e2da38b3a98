"""An evaluation outside urepa has its columns, its row and its sentence by its declarations alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from urepa.config.parts import KINDS, SCHEMAS
from urepa.core.declared_keys import COUNT, TAP, TIME, setting
from urepa.core.descriptions import EvaluatedRun
from urepa.core.errors import UserError
from urepa.core.evaluation_protocols import ROWS, Metric, Reference, evaluation_description
from urepa.reports.comparison.evaluation_protocol import protocol
from urepa.reports.comparison.metric_columns import (
    is_reference,
    metric_of,
    metrics_of,
    reference_key,
    reference_label,
    row_labels,
)
from urepa.reports.comparison.read_runs import as_text
from urepa.training.checks.combinations import check_times
from urepa.training.checks.sizes import check_shapes

GUESS = "a constant guess"


@dataclass
class Sharpness:
    """Two columns, one of them for each named filter, and a row beside the first."""

    _target_: str = f"{__name__}.Sharpness"
    layer: str = setting("the tap that is read", is_a=TAP)
    at: list[float] = setting("times of the objective", ge=0, le=1000, is_a=TIME)
    images: int = setting("held-out images", 10, ge=1, le=COUNT)
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("final/edges", "sharp edges", "↑", beside=(Reference("final/edges_of_a_guess", GUESS),)),
        Metric("final/blur/{}", "blur by {}", "↓", place=15, beside=(Reference("final/blur_se/{}", label="se of {}"),)),
    )

    def __call__(self, context: Any) -> dict[str, float]:
        return {"final/edges": 0.5, "final/edges_of_a_guess": 0.1, "final/blur/box": 2.0, "final/blur_se/box": 0.1}

    def description(self, run: EvaluatedRun) -> str:
        return f"Sharpness of {self.images} images of {run.num_classes} classes."


@dataclass
class Plain:
    """An evaluation that declares only its settings."""

    _target_: str = f"{__name__}.Plain"

    def __call__(self, context: Any) -> dict[str, float]:
        return {"final/a_plain_thing": 1.0}


@pytest.fixture(autouse=True)
def _declared() -> Iterator[None]:
    """Declares the evaluations as `urepa.config.own_package` does, and removes them after the test."""
    for schema in (Sharpness, Plain):
        KINDS["evaluation"][schema._target_] = SCHEMAS[schema._target_] = schema
    yield
    for schema in (Sharpness, Plain):
        del KINDS["evaluation"][schema._target_], SCHEMAS[schema._target_]


KEYS = {"final/edges", "final/edges_of_a_guess", "final/blur/box", "final/blur_se/box", "final/a_plain_thing"}


def test_the_columns_have_arrows_and_positions() -> None:
    found = metrics_of(KEYS | {"final/tap_knn", "final/cka", "final/knn/tap"})
    titles = ["k-NN on the tap\u00a0↑", "blur by box\u00a0↓", "k-NN: tap\u00a0↑", "CKA of the tap\u00a0↑"]
    assert [metric.title for metric in found] == [*titles, "a plain thing", "sharp edges\u00a0↑"]


def test_the_references_have_a_row_or_a_line() -> None:
    metrics = tuple(metrics_of(KEYS))
    assert row_labels(metrics) == [*ROWS, GUESS]
    edges = metric_of("final/edges")
    assert edges is not None
    assert reference_key(edges, GUESS) == "final/edges_of_a_guess"
    assert {key for key in KEYS if is_reference(key)} == {"final/edges_of_a_guess", "final/blur_se/box"}
    assert reference_label("final/blur_se/box") == "se of box"


def test_a_sentence_is_printed_if_it_is_declared() -> None:
    run = EvaluatedRun(num_classes=3, sampler="ddim", is_aligned=False)
    sharpness = Sharpness(layer="mid", at=[5.0])
    assert evaluation_description(sharpness, run) == "Sharpness of 10 images of 3 classes."
    assert evaluation_description(Plain(), run) is None


def test_the_settings_are_checked_by_their_kind(compose: Callable[..., dict[str, Any]]) -> None:
    config = compose("evaluation=none")
    config["evaluation"]["mine"] = {"_target_": Sharpness._target_, "layer": "mid", "at": [500]}
    check_shapes(config)
    check_times(config)
    assert protocol(as_text(config), {})["evaluation.mine.layer"].aligned
    config["evaluation"]["mine"]["at"] = [500, 5000]
    with pytest.raises(UserError, match=r"^evaluation.mine.at=\[500, 5000\]: the objective's timesteps are 0 to 999"):
        check_times(config)
    config["evaluation"]["mine"]["layer"] = "block_1"
    with pytest.raises(UserError, match="block_1"):
        check_shapes(config)
