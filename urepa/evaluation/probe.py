"""What a simple reader finds in the tap: k-NN and a linear probe, under the null condition.

Shapes: B samples, N tokens, D features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from urepa import draws, progress
from urepa.contracts import Condition, no_rows
from urepa.data.cache import Sample
from urepa.evaluation.context import Context

CHUNK = 128


@torch.no_grad()
def tap_features(context: Context, samples: list[Sample], tap: str, timestep: int) -> np.ndarray:
    """Mean-pooled taps [B,D] at one timestep. The class is never given: it would leak the label."""
    features = []
    for start in progress.bar(range(0, len(samples), CHUNK), desc="features", unit="batch", leave=False):
        part = samples[start : start + CHUNK]
        x0 = context.cache.x0(part)
        rngs = [draws.generator(draws.digest64("probe", s.sample_id), "noise") for s in part]
        noise = torch.stack([draws.normal(tuple(x0.shape[1:]), rng) for rng in rngs])
        t_B = torch.full((len(part),), timestep)
        x_t = context.objective.corrupt(x0, noise, t_B).to(context.device)
        null = Condition(torch.full((len(part),), context.cache.null_id), context.cache.null_id)
        condition = Condition(null.ids_B.to(context.device), null.null_id)
        backbone: Any = context.model.backbone
        denoised = backbone(x_t, t_B.to(context.device), condition, (tap,), no_rows(context.device))
        features.append(denoised.features[tap].x_BND.float().mean(1).cpu().numpy())
    return np.concatenate(features)


@dataclass
class TapProbe:
    """k-NN (cosine) and logistic regression (standardised features) of the pooled tap, fitted to training
    images and read on test images; the same of the teacher's pooled tokens and of the pixels beside it."""

    tap: str
    timestep: int
    knn: int
    train_images: int
    test_images: int

    def __call__(self, context: Context) -> dict[str, float]:
        parts = [
            _subset(context.cache.splits["train"], self.train_images),
            _subset(context.cache.splits["test"], self.test_images),
        ]
        labels = [np.array([s.class_id for s in part]) for part in parts]
        taps = [tap_features(context, part, self.tap, self.timestep) for part in parts]
        pixels = [context.cache.x0(part).flatten(1).numpy() for part in parts]
        metrics = {
            "final/tap_knn": self._knn(taps, labels),
            "final/tap_linear_probe": self._linear(taps, labels),
            "final/pixel_knn": self._knn(pixels, labels),
        }
        if context.cache.tokens is not None:
            teacher = [_teacher(context, part) for part in parts]
            metrics["final/teacher_knn"] = self._knn(teacher, labels)
        return metrics

    def _knn(self, features: list[np.ndarray], labels: list[np.ndarray]) -> float:
        from sklearn.neighbors import KNeighborsClassifier

        classifier = KNeighborsClassifier(self.knn, metric="cosine").fit(features[0], labels[0])
        return float(classifier.score(features[1], labels[1]))

    def _linear(self, features: list[np.ndarray], labels: list[np.ndarray]) -> float:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
        return float(probe.fit(features[0], labels[0]).score(features[1], labels[1]))


def _teacher(context: Context, samples: list[Sample]) -> np.ndarray:
    tokens_BND = context.cache.teacher_BND(samples)
    assert tokens_BND is not None
    return tokens_BND.float().mean(1).numpy()


def _subset(samples: list[Sample], n: int) -> list[Sample]:
    """`n` samples that depend on nothing but their ids."""
    return sorted(samples, key=lambda s: draws.unit_interval("probe", s.sample_id))[:n]
