"""How near the aligned taps have come to the teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from urepa.core.declared_keys import COUNT, LARGEST, SIZE, TAP, TIME, setting
from urepa.core.descriptions import EvaluatedRun, number
from urepa.core.errors import UserError
from urepa.core.evaluation_protocols import OF_HEADS, RANDOM, UNTRAINED, ImageCounts, Metric, Reference
from urepa.evaluation.frozen_features import times_text
from urepa.evaluation.image_counts import refuse_numbers

if TYPE_CHECKING:
    from urepa.evaluation.context import Context


FEWEST = 4  # samples that the unbiased HSIC needs
# What is measured against the teacher's own tokens, at whatever tap, rests on these; a head's fit also on what the
# loss made of them.
OF_TEACHER = ("teacher", "data.token_dtype")
OF_FIT = (*OF_TEACHER, "loss.spatial_norm", "loss.grid")
OF_SIMILARITIES = (*OF_HEADS, "loss.manifold_weight")  # the manifold loss trains them


def _floors(measure: str) -> tuple[Reference, ...]:
    """The models before training; of several teachers each."""
    rows = (("untrained", UNTRAINED), ("random", RANDOM))
    beside = [Reference(f"final/{floor}_{measure}", row) for floor, row in rows]
    return (*beside, *(Reference(f"final/{floor}_{measure}/{{}}") for floor, _ in rows))


def _fit(name: str, label: str, better: str, trained_by: tuple[str, ...]) -> Metric:
    """A column on the fit of the heads."""
    return Metric(f"final/{name}", label, better, OF_FIT, place=40, trained_by=trained_by)


AT_THE_TAP = (
    _fit("token_cosine", "token cosine", "↑", OF_HEADS),
    _fit("token_cosine_above_constant", "token cosine above the best constant", "↑", OF_HEADS),
    _fit("similarity_mae", "MAE of sample similarities", "↓", OF_SIMILARITIES),
    _fit("neighbour_recall", "nearest-neighbour recall", "↑", OF_SIMILARITIES),
    Metric("final/cka", "CKA of the tap", "↑", OF_TEACHER, place=40, beside=_floors("cka")),
    Metric("final/cknna", "CKNNA of the tap", "↑", OF_TEACHER, place=40, beside=_floors("cknna")),
)
# at the other aligned taps, or of one of several teachers
ELSEWHERE = tuple(
    Metric(f"{m.key}/{{}}", f"{m.label} ({{}})", m.better, m.rests_on, trained_by=m.trained_by) for m in AT_THE_TAP
)


@dataclass
class TeacherAlignment:
    """Every aligned tap against every teacher on held-out images. Of its head's tokens: the mean cosine with what the
    loss compares them with (the teacher's, or those spatially normalised), raw and less the best constant token's where
    it is the teacher's own, the MAE of sample similarities and the recall of their `neighbours` nearest neighbours. Of
    its own pooled tokens, against the teacher's as they are: linear CKA and CKNNA. The values at `timestep` have plain
    names for the tap `tap` and end in the tap's name for others, and with several teachers in the teacher's; the whole
    grid of t is in `..._by_t` and a figure."""

    _target_: str = "urepa.evaluation.measures.teacher_alignment.TeacherAlignment"
    tap: str = setting("whose values have the plain names; those of other aligned taps end in theirs", is_a=TAP)
    timestep: int | float = setting(
        "of the objective: DDPM's are whole, a flow's lie in [0, 1]", ge=0, le=LARGEST, is_a=TIME
    )
    timesteps: list[int | float] = setting(
        "the grid of the figure, with `timestep`", ge=-LARGEST, le=LARGEST, is_a=TIME
    )
    neighbours: int = setting("k of the recall and of CKNNA", ge=1, le=SIZE)
    images: int = setting("held-out images", ge=1, le=COUNT)
    metrics: ClassVar[tuple[Metric, ...]] = (*AT_THE_TAP, *ELSEWHERE)

    def __call__(self, context: Context) -> dict[str, float]:
        from urepa.evaluation.measures.teacher_alignment_math import align

        return align(self, context)

    def check_images(self, there: ImageCounts, place: str = "") -> None:
        images, fewest = min(self.images, there.held_out), max(FEWEST, self.neighbours + 1)
        if images < FEWEST:
            raise UserError(f"{images} held-out images are too few: it needs {FEWEST}, for the unbiased HSIC")
        fitting = {"neighbours": images - 1} if images < fewest else {}
        refuse_numbers(f"{images:,} held-out images", self, fitting, place)

    def description(self, run: EvaluatedRun) -> str:
        return (
            f"Alignment of the tap {self.tap} with the teacher on {number(self.images)} held-out images at most, at "
            f"{times_text(self.timestep, self.timesteps)}: token cosine (also above the best constant token's), the "
            "mean absolute error of sample similarities and the recall of the teacher's "
            f"{self.neighbours} nearest neighbours behind the head; linear CKA and CKNNA (k = {self.neighbours}) of "
            "the tap."
        )
