"""What the images that an evaluation asks a model for are made under: their classes or, of a run that was trained on
captions, those of validation images of these classes.

Shapes: B images, S validation samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from urepa.core.conditions import Condition, without_never_given
from urepa.core.errors import UserError


def condition_of_images(cache: Any, images: Sequence[tuple[int, int]]) -> Condition:
    """The condition [B] of images, each of a class and the number of the image within it. A caption is the first one of
    the class's validation sample with that number, counted round. UserError where a class has no such sample.

    Args:
        cache: `urepa.data.cache.Cache`.
    """
    if not hasattr(cache.conditions, "of_prompts"):
        found: Condition = cache.condition([class_id for class_id, _ in images])
        return found
    samples = cache.splits["val"]
    classes_S = samples.class_ids()
    chosen = []
    for class_id, number in images:
        own = np.flatnonzero(classes_S == class_id)
        if not len(own):
            raise UserError(f"class {class_id} has no validation image whose caption could be taken for its samples")
        chosen.append(samples[int(own[number % len(own)])])
    return without_never_given(cache.conditions.of_samples(chosen), cache.conditions.dropout)
