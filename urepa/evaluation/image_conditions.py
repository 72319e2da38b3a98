"""The conditions of the images that an evaluation generates: classes or, if the run was trained on captions, captions
of held-out images of these classes.

Shapes: B images, S samples of a split.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from urepa.core.conditions import Condition, without_never_given
from urepa.core.errors import UserError
from urepa.data.lists.samples import Sample

SPLITS = {"val": "validation", "test": "test"}  # in words


def condition_of_images(cache: Any, images: Sequence[tuple[int, int]], split: str = "val") -> Condition:
    """The condition [B] of images, each given by its class and its index within the class. With captions, it is the
    first caption of the sample that `samples_of_images` chooses.

    Args:
        cache: `urepa.data.cache.Cache`.
        split: whose captions are taken: "val" or "test".
    """
    if not has_captions(cache):
        found: Condition = cache.condition([class_id for class_id, _ in images])
        return found
    chosen = samples_of_images(cache, images, split)
    return without_never_given(cache.conditions.of_samples(chosen), cache.conditions.dropout)


def has_captions(cache: Any) -> bool:
    """Whether the run was trained on captions."""
    return hasattr(cache.conditions, "of_prompts")


def samples_of_images(cache: Any, images: Sequence[tuple[int, int]], split: str) -> list[Sample]:
    """The sample of a split whose first caption is the prompt of each image: the one of the class with the image's
    index, modulo their number. Raises UserError if a class has no sample in the split."""
    samples = cache.splits.get(split, [])
    classes_S = samples.class_ids() if len(samples) else np.empty(0)
    chosen: list[Sample] = []
    for class_id, number in images:
        own = np.flatnonzero(classes_S == class_id)
        if not len(own):
            raise UserError(
                f"class {class_id} has no {SPLITS[split]} image whose caption could be taken for its samples"
            )
        chosen.append(samples[int(own[number % len(own)])])
    return chosen
