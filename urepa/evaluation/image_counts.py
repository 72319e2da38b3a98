"""Whether there are as many images as evaluations ask for: known from a run's caches and the settings, so that it is
said before anything is computed. Loads without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from urepa.core.errors import UserError
from urepa.core.evaluation_protocols import ImageCounts


def image_counts(samples: Mapping[str, int], classes: int) -> ImageCounts:
    """Of a run whose splits have so many samples. Readers of features are scored on the test split or, without one, on
    the validation split."""
    return ImageCounts(samples["train"], samples.get("test", samples.get("val", 0)), classes)


def cache_counts(cache: Any) -> ImageCounts:
    """Of a run's opened caches (`urepa.data.cache.Cache`)."""
    return image_counts({split: len(found) for split, found in cache.splits.items()}, cache.num_classes)


def refuse_one_class(there: ImageCounts) -> None:
    """UserError where a linear classifier has nothing to tell apart."""
    if there.classes < 2:
        raise UserError("a linear probe tells classes apart, and there is one alone; leave this evaluation out")


def refuse_numbers(there: str, asked: Any, fitting: Mapping[str, Any], place: str) -> None:
    """UserError where settings are to be others: what there is, what was asked for, and all values to give instead.

    Args:
        there: what there is, "40 training images".
        asked: the declaration.
        fitting: by setting the value to give; {}: nothing is wrong.
        place: what stands before a key on the command line, "evaluation.knn."
    """
    if fitting:
        wanted = " and ".join(f"{key}={getattr(asked, key)}" for key in fitting)
        give = " ".join(f"{place}{key}={'null' if value is None else value}" for key, value in fitting.items())
        raise UserError(f"{there} are too few for {wanted}: give {give}")
