"""The declaration of spatial self-similarity measures of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from urepa.core.declared_keys import COUNT, LARGEST, TAP, TIME, setting
from urepa.core.descriptions import EvaluatedRun, number
from urepa.core.evaluation_protocols import OF_HEADS, RANDOM, TEACHER, UNTRAINED, Metric, Reference

if TYPE_CHECKING:
    from urepa.evaluation.context import Context


def _column(measure: str, title: str, what: str) -> Metric:
    beside = (
        Reference(f"final/{measure}/teacher", TEACHER),
        Reference(f"final/{measure}/untrained_{what}", UNTRAINED),
        Reference(f"final/{measure}/random_{what}", RANDOM),
    )
    trained_by = OF_HEADS if what == "head" else ()
    return Metric(f"final/{measure}/{what}", f"{title}: {what}", place=60, beside=beside, trained_by=trained_by)


@dataclass
class Spatial:
    """iREPA's three measures (arXiv 2512.10794) on held-out images, for the tap and its head's output. References are
    the teacher's tokens and the tap of the model before any training."""

    _target_: str = "urepa.evaluation.measures.spatial.Spatial"
    tap: str = setting("the tap that is read", is_a=TAP)
    timestep: int | float = setting(
        "time of the objective: a whole number for DDPM, in [0, 1] for a flow", ge=0, le=LARGEST, is_a=TIME
    )
    images: int = setting("held-out images", ge=1, le=COUNT)
    far: float = setting("share of a grid's largest Manhattan distance from which tokens are distant", ge=0, le=1)
    decay: float = setting("share up to which the slope is taken", ge=0, le=1)
    metrics: ClassVar[tuple[Metric, ...]] = tuple(
        _column(measure, measure.upper(), what) for measure in ("lds", "cds", "rmsc") for what in ("tap", "head")
    )

    def __call__(self, context: Context) -> dict[str, float]:
        from urepa.evaluation.measures.spatial_math import measure_structure

        return measure_structure(self, context)

    def description(self, run: EvaluatedRun) -> str:
        return (
            f"Spatial structure of the tap {self.tap} and its head at t = {self.timestep} on {number(self.images)} "
            "held-out images at most, between the teacher and the model before training: LDS (tokens "
            f"are distant from {number(self.far)} of the grid's largest Manhattan distance on), CDS (slope up to "
            f"{number(self.decay)} of it) and RMSC."
        )
