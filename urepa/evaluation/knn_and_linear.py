"""Simple classifiers of frozen vectors. Their accuracy measures the class information in the vectors.

Shapes: B samples, D features, K classes.
"""

from __future__ import annotations

import numpy as np

MEMORY = 64  # MiB that scikit-learn may use for a block of distances
TOP = 5
Vectors = tuple[np.ndarray, np.ndarray]  # training and held-out images, each [B,D]
Labels = tuple[np.ndarray, np.ndarray]  # class ids, each [B]


def knn_scores(vectors: Vectors, labels: Labels, k: int) -> dict[str, float]:
    """Accuracy of the majority vote of the k nearest training images by cosine: top-1 (key ""), and with more than 5
    classes top-5 (key "_top5"). Classes without a vote are not among the five."""
    from sklearn import config_context
    from sklearn.neighbors import KNeighborsClassifier

    with config_context(working_memory=MEMORY):
        classifier = KNeighborsClassifier(k, metric="cosine").fit(vectors[0], labels[0])
        return _scores(classifier.predict_proba(vectors[1]), classifier.classes_, labels[1])


def linear_scores(vectors: Vectors, labels: Labels) -> dict[str, float]:
    """The same for logistic regression (C = 0.1) on features standardised by the training images."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000)).fit(vectors[0], labels[0])
    return _scores(probe.predict_proba(vectors[1]), probe.classes_, labels[1])


def _scores(shares_BK: np.ndarray, classes_K: np.ndarray, labels_B: np.ndarray) -> dict[str, float]:
    """Accuracies by key suffix. Ties go to the smaller class id, as in scikit-learn's `predict`."""
    order_BK = np.argsort(-shares_BK, axis=1, kind="stable")[:, :TOP]
    right_BK = (classes_K[order_BK] == labels_B[:, None]) & (np.take_along_axis(shares_BK, order_BK, 1) > 0)
    scores = {"": float(right_BK[:, 0].mean())}
    if len(classes_K) > TOP:
        scores["_top5"] = float(right_BK.any(1).mean())
    return scores
