"""The declaration of measures of how similar the aligned taps are to the teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from urepa.core.declared_keys import COUNT, LARGEST, SIZE, TAP, TIME, setting
from urepa.core.descriptions import EvaluatedRun, number
from urepa.core.errors import UserError
from urepa.core.evaluation_protocols import OF_HEADS, RANDOM, UNTRAINED, ImageCounts, Metric, Picture, Reference
from urepa.evaluation.frozen_features import times_text
from urepa.evaluation.image_counts import refuse_numbers

if TYPE_CHECKING:
    from urepa.evaluation.context import Context


FEWEST = 4  # smallest number of samples for the unbiased HSIC
# The settings on which values against the teacher's own tokens depend, at any tap. A head's fit also depends on the
# loss's target.
OF_TEACHER = ("teacher", "data.token_dtype")
OF_FIT = (*OF_TEACHER, "loss.spatial_norm", "loss.grid")
OF_SIMILARITIES = (*OF_HEADS, "loss.manifold_weight")  # the manifold loss trains them

PANELS = "A panel for each measure has its values by time, with a line for each tap."
PICTURE = Picture("evaluation/alignment_step_{step}.png", "Similarity to the teacher", PANELS)
OF_A_TEACHER = Picture("evaluation/alignment_{name}_step_{step}.png", "Similarity to the teacher", PANELS)


def _floors(measure: str) -> tuple[Reference, ...]:
    """References of the models before training; with several teachers one per teacher."""
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
# at other aligned taps, or of one of several teachers
ELSEWHERE = tuple(
    Metric(f"{m.key}/{{}}", f"{m.label} ({{}})", m.better, m.rests_on, trained_by=m.trained_by) for m in AT_THE_TAP
)


@dataclass
class TeacherAlignment:
    """Compares every aligned tap with every teacher on held-out images. For the tokens of its head: the mean cosine
    with the loss's targets (the teacher's tokens, raw or spatially normalised); for raw targets also the cosine minus
    that of the best constant token; the MAE of sample similarities; and the recall of their `neighbours` nearest
    neighbours. For the tap's own pooled tokens and the teacher's: linear CKA and CKNNA. Values at `timestep` have plain
    names for the tap `tap`; for other taps they end in the tap's name, and with several teachers in the teacher's. The
    values of all t are in `..._by_t` and in a figure."""

    _target_: str = "urepa.evaluation.measures.teacher_alignment.TeacherAlignment"
    tap: str = setting(
        "the tap whose values have plain names; those of other aligned taps end in their names", is_a=TAP
    )
    timestep: int | float = setting(
        "time of the objective: a whole number for DDPM, in [0, 1] for a flow", ge=0, le=LARGEST, is_a=TIME
    )
    timesteps: list[int | float] = setting(
        "further times, in `..._by_t` and the figure", ge=-LARGEST, le=LARGEST, is_a=TIME
    )
    neighbours: int = setting("k of the recall and of CKNNA", ge=1, le=SIZE)
    images: int = setting("held-out images", ge=1, le=COUNT)
    pictures: ClassVar[tuple[Picture, ...]] = (PICTURE, OF_A_TEACHER)
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
