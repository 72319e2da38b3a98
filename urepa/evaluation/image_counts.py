"""Checks whether there are as many images as evaluations need. It uses only a run's caches and settings, so it comes
before any computation. Loads without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from urepa.core.errors import UserError
from urepa.core.evaluation_protocols import ImageCounts


def image_counts(samples: Mapping[str, int], classes: int) -> ImageCounts:
    """The image counts of a run with these numbers of samples per split. Features are scored on the test split or,
    without one, on the validation split."""
    return ImageCounts(samples["train"], samples.get("test", samples.get("val", 0)), classes)


def cache_counts(cache: Any) -> ImageCounts:
    """The image counts of a run's opened caches (`urepa.data.cache.Cache`)."""
    return image_counts({split: len(found) for split, found in cache.splits.items()}, cache.num_classes)


def refuse_one_class(there: ImageCounts) -> None:
    """Raises UserError if there is only one class, which a linear classifier cannot use."""
    if there.classes < 2:
        raise UserError("a linear probe needs two classes or more, and there is only one; leave this evaluation out")


def refuse_numbers(there: str, asked: Any, fitting: Mapping[str, Any], place: str) -> None:
    """Raises UserError if settings must change, with what there is, what was requested, and the values to give instead.

    Args:
        there: what there is, for example "40 training images".
        asked: the declaration of the evaluation.
        fitting: the values to give, by setting; {}: nothing is wrong.
        place: the prefix of keys on the command line, for example "evaluation.knn."
    """
    if fitting:
        wanted = " and ".join(f"{key}={getattr(asked, key)}" for key in fitting)
        give = " ".join(f"{place}{key}={'null' if value is None else value}" for key, value in fitting.items())
        raise UserError(f"{there} are too few for {wanted}: give {give}")
