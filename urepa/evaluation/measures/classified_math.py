"""Counts the generated images that a classifier of real images assigns to the class of their condition.

Shapes: B images, S image size, K classes.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from urepa.core.errors import UserError
from urepa.evaluation.context import Context
from urepa.evaluation.image_conditions import has_captions, samples_of_images
from urepa.evaluation.images.generated_images_math import batches_of
from urepa.evaluation.measures.classified import Classified

Z = 1.959963984540054  # the 97.5 % quantile of the standard normal distribution


def classify(asked: Classified, context: Context) -> dict[str, float]:
    """The shares of images that are classified correctly, each with its 95 % interval. Raises UserError if the
    classifier is missing, or its classes are not those of the run."""
    classifier = asked.classifier.build()
    real = classifier.accuracy  # if the classifier is missing, this raises before sampling
    if classifier.num_classes != context.track.num_classes:
        raise UserError(
            f"the classifier has {classifier.num_classes} classes and this run's track {context.track.num_classes}: "
            "give a classifier of this track"
        )
    metrics = _prompts(asked.images, context) | {"final/classified/real": real}
    for name, withheld in (("correct", False), ("withheld", True)):
        right, count = _count_correct(asked.images, context, classifier, withheld)
        low, high = wilson_interval(right, count)
        ends = {f"final/classified/{name}_{end}": value for end, value in (("low", low), ("high", high))}
        metrics |= {f"final/classified/{name}": right / count} | ends
    return metrics


def _count_correct(images: Any, context: Context, classifier: Any, withheld: bool) -> tuple[int, int]:
    """The number of images that are classified as the class of their condition, and the number of all images."""
    right = count = 0
    for class_ids, rgb_B3SS in images.rgb(context, withheld):
        with torch.autocast(context.device.type, enabled=False):  # encoders choose their own precision
            named_B = classifier.probabilities(rgb_B3SS).argmax(1).cpu()
        right += int((named_B == torch.tensor(class_ids)).sum())
        count += len(class_ids)
    return right, count


def _prompts(images: Any, context: Context) -> dict[str, float]:
    """The number of different prompts of the images, and the number of these that are captions of training images."""
    cache = context.cache
    if not has_captions(cache):
        return {}
    asked = [image for batch in batches_of(images, context.track.num_classes) for image in batch]
    conditions: Any = cache.conditions
    captions = conditions.captions
    prompts = {captions[s.sample_id][0] for s in samples_of_images(cache, asked, images.captions_of)}
    trained = {text for sample_id in cache.splits["train"].ids() for text in captions[sample_id]}
    print(f"{len(prompts):,} different prompts, {len(prompts & trained):,} of them captions of training images")
    return {
        "final/classified/prompts": float(len(prompts)),
        "final/classified/prompts_trained_on": float(len(prompts & trained)),
    }


def wilson_interval(right: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927), in [0,1]: the shares p with |right/count − p| at most 1.96 standard
    errors of p."""
    share, squared = right / count, Z * Z / count
    middle = (share + squared / 2) / (1 + squared)
    half = Z / (1 + squared) * math.sqrt(share * (1 - share) / count + squared / (4 * count))
    return max(0.0, middle - half), min(1.0, middle + half)
