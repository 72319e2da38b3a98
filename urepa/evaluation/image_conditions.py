"""The conditions of the images that an evaluation generates: classes or, if the run was trained on captions, captions
of validation images of these classes.

Shapes: B images, S validation samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from urepa.core.conditions import Condition, without_never_given
from urepa.core.errors import UserError


def condition_of_images(cache: Any, images: Sequence[tuple[int, int]]) -> Condition:
    """The condition [B] of images, each given by its class and its index within the class. With captions, it is the
    first caption of the class's validation sample with that index, modulo their number. Raises UserError if a class has
    no validation sample.

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
