"""Attention pooling finds the relevant token where the mean of all tokens has no information."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from urepa.core.types import Tokens
from urepa.evaluation import attention
from urepa.evaluation.attention import AttentionPool, TokenFile, apply_pool, train
from urepa.evaluation.features import mean_token
from urepa.evaluation.knn_and_linear import knn_scores, linear_scores

CPU = torch.device("cpu")
CLASSES, WIDTH = 4, 12


def marked(n: int, seed: int) -> tuple[torch.Tensor, np.ndarray]:
    """Tokens [n,4,12]: every sample has the direction of each class once, so that its mean token has no information;
    the token of its own class is marked in the last feature."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, n)
    tokens = 0.1 * rng.standard_normal((n, CLASSES, WIDTH))
    for row, label in zip(tokens, labels, strict=True):
        for place, of_class in enumerate(rng.permutation(CLASSES)):
            row[place, of_class] += 1
            row[place, -1] += of_class == label
    return torch.from_numpy(tokens).float(), labels


def stored(x_BND: torch.Tensor, folder: Path) -> TokenFile:
    file = TokenFile(folder)
    for part in x_BND.split(50):
        file.append(Tokens(part, (2, 2)))
    return file


@pytest.mark.slow
def test_attention_pooling_finds_what_mean_pooling_cannot(tmp_path: Path) -> None:
    (fitted, labels), (read, truth) = marked(400, 0), marked(200, 1)
    rows = stored(fitted, tmp_path).rows
    query = train(rows, labels, CPU)
    assert query.query_D[:-1].abs().max() < query.query_D[-1], "it looks for the mark"
    for reader in (linear_scores, lambda v, t: knn_scores(v, t, 5)):
        for pool, low, high in ((mean_token, 0.0, 0.4), (query, 0.95, 1.0)):
            vectors = apply_pool(rows, len(labels), pool), pool(Tokens(read, (2, 2))).numpy()
            assert low <= reader(vectors, (labels, truth))[""] <= high
    again = train(rows, labels, CPU)
    assert torch.equal(again.query_D, query.query_D)


def test_no_query_is_the_mean_of_standardised_tokens() -> None:
    x_BND = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    pool = AttentionPool(torch.zeros(5), torch.full((5,), 0.5), torch.full((5,), 2.0))
    torch.testing.assert_close(pool(Tokens(x_BND, (2, 2))), (x_BND.mean(1) - 0.5) / 2)
    query = torch.randn(5, generator=torch.Generator().manual_seed(1))
    z = (x_BND - 0.5) / 2
    weight = torch.exp(z @ query / 5**0.5)
    by_hand = (weight[..., None] * z).sum(1) / weight.sum(1, keepdim=True)
    pool = AttentionPool(query, pool.mean_D, pool.deviation_D)
    torch.testing.assert_close(pool(Tokens(x_BND, (2, 2))), by_hand)
    with torch.autocast("cpu", torch.bfloat16):  # a bf16 run's evaluation
        torch.testing.assert_close(pool(Tokens(x_BND, (2, 2))), by_hand)
    masked = Tokens(x_BND, (2, 2), torch.tensor([[True, True, True, False]] * 3))
    torch.testing.assert_close(pool(masked), pool(Tokens(x_BND[:, :3], (1, 3))))


def test_statistics_are_those_of_all_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "BATCH", 30)
    monkeypatch.setattr(attention, "STEPS", 1)
    x_BND = 3 + 2 * torch.randn(100, 4, 6, generator=torch.Generator().manual_seed(0))
    x_BND[..., 2] = 7.0  # a feature that never varies
    pool = train(stored(x_BND, tmp_path).rows, np.arange(100) % 2, CPU)
    torch.testing.assert_close(pool.mean_D, x_BND.flatten(0, 1).mean(0))
    expected = x_BND.flatten(0, 1).double().std(0, correction=0).float()
    torch.testing.assert_close(pool.deviation_D, expected + attention.SMALL, rtol=1e-4, atol=1e-6)
    assert pool(Tokens(x_BND, (2, 2))).isfinite().all()


def test_the_temporary_file_returns_its_values_and_is_removed(tmp_path: Path) -> None:
    x_BND = torch.randn(120, 4, 3, generator=torch.Generator().manual_seed(0))
    file = stored(x_BND, tmp_path)
    places = np.array([119, 0, 50, 49, 0])
    found = file.rows(places)
    assert torch.equal(found.x_BND, x_BND[torch.from_numpy(places)])
    assert found.grid == (2, 2)
    assert list(tmp_path.iterdir()) == []
