"""k-NN and linear probe, compared with scikit-learn and with a loop over all pairs."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from urepa.evaluation import knn_and_linear
from urepa.evaluation.knn_and_linear import knn_scores, linear_scores


def clusters(classes: int, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(9).standard_normal((classes, 8))
    labels = rng.integers(0, classes, n) * 3 + 1  # ids need not be 0, 1, 2...
    return (centres[labels // 3] + 1.5 * rng.standard_normal((n, 8))).astype(np.float32), labels


def naive(fitted: np.ndarray, read: np.ndarray, labels: np.ndarray, k: int) -> list[list[int]]:
    """Each vector's class by votes; the smaller id wins a tie."""
    named = []
    for x in read:
        cosines = [float(x @ y / np.linalg.norm(x) / np.linalg.norm(y)) for y in fitted]
        votes = Counter(labels[i] for i in sorted(range(len(fitted)), key=lambda i: -cosines[i])[:k])
        named.append(sorted(votes, key=lambda c: (-votes[c], c)))
    return named


@pytest.mark.parametrize("k", [1, 7, 30])
@pytest.mark.parametrize("classes", [4, 12])
def test_knn_is_that_of_a_loop_over_all_pairs(classes: int, k: int) -> None:
    (fitted, labels), (read, truth) = clusters(classes, 150, 0), clusters(classes, 60, 1)
    named = naive(fitted, read, labels, k)
    expected = {"": np.mean([n[0] == t for n, t in zip(named, truth, strict=True)])}
    if classes > 5:
        expected["_top5"] = np.mean([t in n[:5] for n, t in zip(named, truth, strict=True)])
    assert knn_scores((fitted, read), (labels, truth), k) == pytest.approx(expected)


def test_knn_in_blocks_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    (fitted, labels), (read, truth) = clusters(12, 3000, 0), clusters(12, 900, 1)  # 21 MiB of distances
    whole = knn_scores((fitted, read), (labels, truth), 7)
    monkeypatch.setattr(knn_and_linear, "MEMORY", 1)
    assert knn_scores((fitted, read), (labels, truth), 7) == whole


def test_the_probe_is_scikit_learns() -> None:
    (fitted, labels), (read, truth) = clusters(12, 300, 0), clusters(12, 100, 1)
    fitted, read = 50 + 7 * fitted, 50 + 7 * read
    scaler = StandardScaler().fit(fitted)
    probe = LogisticRegression(C=0.1, max_iter=1000).fit(scaler.transform(fitted), labels)
    decision = probe.decision_function(scaler.transform(read))
    top5 = np.mean([t in probe.classes_[np.argsort(-d)[:5]] for d, t in zip(decision, truth, strict=True)])
    expected = {"": probe.score(scaler.transform(read), truth), "_top5": top5}
    assert 0.2 < expected[""] < expected["_top5"] < 1
    assert linear_scores((fitted, read), (labels, truth)) == pytest.approx(expected)
