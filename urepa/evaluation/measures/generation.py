"""The declaration of distances between generated and real images."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from urepa.core.declared_keys import COUNT, SIZE, part, setting
from urepa.core.descriptions import EvaluatedRun, encoder_text, join_with_and, number
from urepa.core.errors import UserError
from urepa.core.evaluation_protocols import ImageCounts, Metric, Reference
from urepa.evaluation.image_counts import refuse_numbers

if TYPE_CHECKING:
    from urepa.evaluation.context import Context


NAME = re.compile(r"[\w.-]+")  # what MLflow accepts between slashes
CIRCULAR = "final/circular/{}"  # the encoder is the run's own teacher
ERROR = "standard error of FD({}) over resamplings of"


def _distance(kind: str, title: str, better: str, *more: Reference) -> Metric:
    """A column for each encoder, with the value of held-out images as its reference."""
    held_out = Reference(f"floor/{kind}/{{}}", label=f"{title}({{}}) of held-out images")
    key, label = f"final/{kind}/{{}}", f"{title}({{}})"
    return Metric(key, label, better, place=100, beside=(held_out, *more), circular=CIRCULAR)


def check_names(encoders: Iterable[str]) -> None:
    """Raises UserError if names of encoders are not valid in column names."""
    for name in encoders:
        if NAME.fullmatch(name) is None:
            raise UserError(f"encoders: '{name}' is not a valid column name; use letters, digits, '.', '_' and '-'")


@dataclass
class Generation:
    """Fréchet distance, KID, precision and recall, in the features of each encoder."""

    _target_: str = "urepa.evaluation.measures.generation.Generation"
    images: Any = part("which images are generated")
    encoders: dict[str, Any] = part("the encoders, by the names of their columns")
    reference_images: int | None = setting("training images to compare with; null: all", ge=2, le=COUNT)
    subset: int = setting(
        "real and generated images for KID, precision and recall; the Fréchet distance uses all", ge=2, le=COUNT
    )
    kid_subsets: int = setting("number of subsets over which KID is averaged", ge=1, le=SIZE)
    kid_subset_size: int = setting("images in each of them", ge=2, le=SIZE)
    neighbours: int = setting("k of the balls of precision and recall", ge=1, le=SIZE)
    metrics: ClassVar[tuple[Metric, ...]] = (
        _distance(
            "fd",
            "FD",
            "↓",
            Reference("final/fd_se/{}", label=f"{ERROR} one run's images"),
            Reference("floor/fd_se/{}", label=f"{ERROR} held-out images"),
        ),
        _distance("kid", "KID", "↓"),
        _distance("precision", "precision", "↑"),
        _distance("recall", "recall", "↑"),
    )

    def __call__(self, context: Context) -> dict[str, float]:
        from urepa.evaluation.measures.image_distances_math import measure_distances

        return measure_distances(self, context)

    def check_images(self, there: ImageCounts, place: str = "") -> None:
        """Checks the numbers of images, and that encoder names are valid in column names."""
        check_names(self.encoders)
        count = self.images.count
        fitting: dict[str, int | None] = {}
        reference = there.train if self.reference_images is None else min(self.reference_images, there.train)
        if self.reference_images is not None and self.reference_images > there.train:
            fitting["reference_images"] = None
        subset = min(self.subset, count, reference)
        if subset < self.subset:
            fitting["subset"] = subset
        if self.kid_subset_size > subset:
            fitting["kid_subset_size"] = max(2, subset // 2)
        if self.neighbours + 1 > subset:
            fitting["neighbours"] = subset - 1
        refuse_numbers(f"{reference:,} training images and {count:,} generated ones", self, fitting, place)

    def description(self, run: EvaluatedRun) -> str:
        encoders = join_with_and([f"{name} ({encoder_text(encoder)})" for name, encoder in self.encoders.items()])
        real = "all" if self.reference_images is None else number(self.reference_images)
        return (
            f"Generated images: {self.images.description(run)}, compared with {real} training images in the features "
            f"of {encoders}. Fréchet distance over all of them, with its standard error by a jackknife over tenths of "
            f"{number(self.subset)} of the images; on {number(self.subset)} of either kind KID ({self.kid_subsets} "
            f"subsets of {number(self.kid_subset_size)}), precision and recall ({self.neighbours} neighbours)."
        )
