"""The columns of a comparison: those of validation, those that evaluations declare, and the reference values below
them.

A key that no evaluation declares becomes a column with the key as its label and without a direction.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from urepa.config.parts import KINDS
from urepa.core.ema_initial_weights import SHARE
from urepa.core.evaluation_protocols import LAST, ROWS, Metric, Reference, all_metrics

DURING = "eval/"  # evaluations in the course of training
GRADIENT_COSINE = "/grad_cosine"  # the last part of a key at a tap
SKIPPED = "guard/skipped_steps"
SPIKES, EPISODES = "guard/manifold_spikes", "guard/spike_episodes"
RATE = "images_per_s"  # between two logging steps; the training time is computed from it
OF_EVERY_LOSS = (Metric("val/total", "total loss", "↓"), Metric("val/diffusion", "diffusion loss", "↓"))
OF_THE_IMAGE = Metric("val/x0_error", "x0 error", "↓")  # every loss has it; its column follows the loss's own terms
FLOORS = {  # reference values of validation
    "floor/zero_predictor": "diffusion loss of predicting zero",
    "floor/null_condition": "diffusion loss of the same model with every part of the condition withheld",
    "floor/constant_token": "token loss of the best constant token",
}
NAME = "{}"  # the placeholder for a name in a declared key


@dataclass(frozen=True)
class Declared:
    """The metrics and reference values that evaluations declare, by key; metrics with their position among all."""

    metrics: dict[str, tuple[int, Metric]]
    references: dict[str, Reference]
    circular: frozenset[str]

    @staticmethod
    def of(evaluations: tuple[type, ...]) -> Declared:
        metrics = all_metrics(evaluations)
        return Declared(
            {metric.key: (i, metric) for i, metric in reversed(list(enumerate(metrics)))},
            {reference.key: reference for metric in metrics for reference in metric.beside},
            frozenset(metric.circular for metric in metrics if metric.circular),
        )


def is_compared(key: str) -> bool:
    """Whether the metric appears in a table, a figure or a remark. Learning rates and norms do not; their curves are
    not kept."""
    compared = key.startswith(("train/", "val/", "final/", "floor/", DURING)) or key.endswith(GRADIENT_COSINE)
    return compared or key in (SHARE, SKIPPED, SPIKES, EPISODES, RATE)


def metrics_of(keys: set[str]) -> list[Metric]:
    """The columns for the keys that any run has: those of validation, then those of evaluations in the order of their
    declared places, then those without a place and undeclared ones in the order of their keys."""
    found = [_column(key, keys) for key in keys if key.startswith("final/") and not is_beside(key)]
    validated = [metric for metric in validation_metrics() if metric.key in keys]
    return validated + [metric for _, metric in sorted(found, key=lambda one: one[0])]


def validation_metrics() -> list[Metric]:
    """The columns of validation: those that every loss has, and the terms that the declared losses have."""
    terms = [metric for loss in KINDS["loss"].values() for metric in getattr(loss, "metrics", ())]
    return [*OF_EVERY_LOSS, *{metric.key: metric for metric in terms}.values(), OF_THE_IMAGE]


def metric_of(key: str) -> Metric | None:
    """The declaration that fits a key, with the name from the key filled in; None for an undeclared key."""
    for declared, name in _forms(key):
        if declared in _declared().metrics:
            return _named(_declared().metrics[declared][1], name)
    return None


def rests_on(key: str) -> tuple[str, ...]:
    """The config keys and groups on which a value depends: those declared for its key or for the longest declared key
    of which it is a continuation (by a tap and a teacher, for example)."""
    while key:
        metric = metric_of(key)
        if metric is not None:
            return metric.rests_on
        key = key.rpartition("/")[0]
    return ()


def _column(key: str, keys: set[str]) -> tuple[tuple[int, str, int], Metric]:
    """The sort key of a column, and the column of a key."""
    for declared, name in _forms(key):
        if declared in _declared().metrics:
            order, metric = _declared().metrics[declared]
            metric = _named(metric, name, ", circular" if metric.circular.replace(NAME, name) in keys else "")
            return ((LAST, key, 0) if metric.place == LAST else (metric.place, name, order)), metric
    return (LAST, key, 0), Metric(key, key.removeprefix("final/").replace("_", " "))


def _declared() -> Declared:
    return _declared_by(tuple(KINDS["evaluation"].values()))


@lru_cache(maxsize=1)
def _declared_by(evaluations: tuple[type, ...]) -> Declared:
    return Declared.of(evaluations)


def _forms(key: str) -> Iterator[tuple[str, str]]:
    """The forms in which a key may be declared, each with the name in it: the key itself, or with any name as its last
    part."""
    yield key, ""
    path, _, last = key.rpartition("/")
    yield f"{path}/{NAME}", last


def _named(metric: Metric, name: str, mark: str = "") -> Metric:
    """A declared metric with a name and a mark in place of `{}`."""
    beside = tuple(replace(one, key=one.key.replace(NAME, name)) for one in metric.beside)
    label = metric.label.replace(NAME, f"{name}{mark}")
    return replace(metric, key=metric.key.replace(NAME, name), label=label, beside=beside)


def is_beside(key: str) -> bool:
    """Whether the key belongs to another column and has none of its own."""
    if "_by_t/" in key or key.startswith("final/floor/") or key.split("/")[1].endswith("_sd"):
        return True
    return is_reference(key) or any(form in _declared().circular for form, _ in _forms(key))


def is_reference(key: str) -> bool:
    """Whether this is a reference value (a floor or a ceiling), which is the same for all arms."""
    return key.startswith("floor/") or any(form in _declared().references for form, _ in _forms(key))


def reference_label(key: str) -> str:
    """The label of a reference value."""
    for declared, name in _forms(key):
        reference = _declared().references.get(declared)
        if reference is not None and reference.label:
            return reference.label.replace(NAME, name)
    return FLOORS.get(key, key)


def row_labels(metrics: tuple[Metric, ...]) -> list[str]:
    """The labels of the reference rows below the arms, those that several evaluations have first."""
    own = [one.row for metric in metrics for one in metric.beside if one.row and one.row not in ROWS]
    return [*ROWS, *dict.fromkeys(own)]


def reference_key(metric: Metric, row: str) -> str:
    """The key of the reference value in this row and column, which a run may lack; "" if none is declared."""
    return next((one.key for one in metric.beside if one.row == row), "")


def bins_of(keys: set[str], term: str) -> list[str]:
    """The keys of a validation term by timestep bin, in the order of t."""
    return sorted(k for k in keys if k.startswith(f"val/{term}_by_t/"))
