"""Measures how well an image's first tokens separate the classes. Shapes: N images, K tokens of an image, d values of a
token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from urepa.core.errors import UserError
from urepa.data.lists.samples import Sample
from urepa.evaluation.context import Context
from urepa.evaluation.features import held_out_samples, labels_of, subset
from urepa.evaluation.image_counts import cache_counts
from urepa.evaluation.image_tokens import codes_of, powers_of_two, tokenizer_of, vectors_of
from urepa.evaluation.knn_and_linear import linear_scores
from urepa.evaluation.measures.classified_math import wilson_interval
from urepa.evaluation.measures.token_classes import TokenClasses
from urepa.method.training_step import AlignedModel


def classes_of_tokens(asked: TokenClasses, context: Context) -> dict[str, float]:
    """The silhouette and the probe's accuracy by number of tokens, for the trained encoder and the encoder before
    training; the interval of the trained one's accuracy, and the accuracy of the most frequent class."""
    asked.check_images(cache_counts(context.cache))
    registers = tokenizer_of(context).registers
    train = subset(context.cache.splits["train"], asked.train_images)
    test = subset(held_out_samples(context), asked.test_images)
    labels = labels_of(train), labels_of(test)
    if not 2 <= len(set(labels[1].tolist())) < len(test):
        raise UserError(
            f"a silhouette needs two classes or more, and more images than classes; the {len(test)} held-out images "
            f"are of {len(set(labels[1].tolist()))} classes: give more evaluation.token_classes.test_images"
        )
    metrics: dict[str, float] = {}
    for prefix, model in (("", context.model), ("untrained_", context.untrained())):
        fitted, read = (_numbers(context, part, model) for part in (train, test))
        for count in powers_of_two(registers):
            pair = fitted[:, :count].reshape(len(train), -1), read[:, :count].reshape(len(test), -1)
            metrics[f"final/{prefix}token_silhouette/{count}"] = silhouette(pair[1], labels[1])
            metrics[f"final/{prefix}token_probe/{count}"] = linear_scores(pair, labels)[""]
    for count in powers_of_two(registers):
        correct = round(metrics[f"final/token_probe/{count}"] * len(test))
        low, high = wilson_interval(correct, len(test))
        metrics |= {f"final/token_probe_low/{count}": low, f"final/token_probe_high/{count}": high}
    metrics["final/token_probe_chance"] = float((labels[1] == np.bincount(labels[0]).argmax()).mean())
    return metrics


def _numbers(context: Context, samples: Sequence[Sample], model: AlignedModel) -> np.ndarray:
    """The values of the samples' tokens [N,K,d]."""
    return vectors_of(context, codes_of(context, samples, model)).numpy()


def silhouette(vectors_ND: np.ndarray, labels_N: np.ndarray) -> float:
    """The mean over images of (b − a)/max(a, b), where a is the mean distance to the other images of the class and b
    the smallest mean distance to another class (Rousseeuw 1987). In [-1, 1]; 0 for an image alone in its class."""
    from sklearn.metrics import silhouette_score

    return float(silhouette_score(vectors_ND, labels_N))
