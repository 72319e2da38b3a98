"""Whitened teacher tokens: their covariance is the identity; the file of their statistics; a run's targets."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from urepa.core.errors import UserError
from urepa.data.tracks.pixel_caches import PixelTrackCaches
from urepa.data.whitening import FILE, IMAGES, Whitening, fit_whitening
from urepa.models.teachers.efficientnet_net import EfficientNetLite0Network

Build = Callable[..., Any]


def correlated(count: int, width: int, seed: int = 0) -> torch.Tensor:
    """Tokens [M,D] whose channels depend on each other and whose mean is not 0."""
    random = torch.Generator().manual_seed(seed)
    mixing = 0.3 * torch.randn(width, width, generator=random) + 2 * torch.eye(width)
    return torch.randn(count, width, generator=random) @ mixing + torch.arange(width)


def test_the_covariance_of_whitened_tokens_is_the_identity() -> None:
    tokens = correlated(500, 8)
    mean, matrix = fit_whitening(tokens.split(64))
    white = (tokens.double() - mean) @ matrix
    torch.testing.assert_close(white.mean(0), torch.zeros(8, dtype=torch.float64), atol=1e-9, rtol=0)
    covariance = white.mT @ white / len(white)
    torch.testing.assert_close(covariance, torch.eye(8, dtype=torch.float64), atol=1e-4, rtol=0)
    # along the principal components, of falling variance: M = U·diag(1/σ) has M^T·M = diag(1/σ²)
    of_axes = matrix.mT @ matrix
    spectrum = torch.linalg.svdvals(tokens.double() - tokens.double().mean(0)) ** 2 / len(tokens)
    torch.testing.assert_close(of_axes, torch.diag(1 / spectrum), atol=1e-4, rtol=1e-4)


def test_a_component_that_does_not_vary_stays_finite() -> None:
    tokens = torch.cat([correlated(100, 4), torch.ones(100, 1)], dim=1)
    mean, matrix = fit_whitening([tokens])
    white = (tokens.double() - mean) @ matrix
    assert white.isfinite().all()
    assert white.std(0)[-1] < 1e-3


def test_the_file_holds_the_statistics_exactly() -> None:
    mean, matrix = fit_whitening([correlated(50, 5)])
    one = Whitening(mean.float(), mean.float() * 2, matrix.float())
    other = Whitening.of_file(one.as_file())
    for name in ("mean_D", "constant_D", "matrix_DD"):
        assert torch.equal(getattr(one, name), getattr(other, name))


def test_tokens_are_whitened_in_fp32_within_autocast() -> None:
    """Validation reads within it; bf16 would give it other targets than training."""
    tokens = correlated(50, 5)
    mean, matrix = fit_whitening([tokens])
    one = Whitening(mean.float(), mean.float(), matrix.float())
    with torch.autocast("cpu", torch.bfloat16):
        within = one(tokens)
    assert torch.equal(within, one(tokens))


def teacher(**changes: Any) -> EfficientNetLite0Network:
    return EfficientNetLite0Network(32, [2, 2], 16, **changes)


@pytest.mark.slow
def test_a_track_reads_whitened_tokens_of_the_same_store(make_track: Callable[..., PixelTrackCaches]) -> None:
    track = make_track()
    with closing(track.open(teacher())) as cache:
        train = cache.splits["train"]
        assert len(train) <= IMAGES
        plain = cache.teachers(train)[""].x_BND
        content = cache.content()
    folder = track.tokens_folders(teacher())[""]
    assert not (folder / FILE).exists()
    with closing(track.open(teacher(whiten=True))) as cache:
        raw = {"": np.empty((len(train), cache.tokens[""].record_bytes), dtype=np.uint8)}
        white = cache.teachers(train, raw)[""].x_BND
        assert torch.equal(white, cache.teachers(train)[""].x_BND)
        mean_token, own = cache.mean_token(), cache.content()
        recorded = cache.fingerprint()["tokens"]
    mean, matrix = fit_whitening([plain.flatten(0, 1)])
    torch.testing.assert_close(white.double(), (plain.double() - mean) @ matrix, atol=1e-3, rtol=1e-3)
    expected = F.normalize(white, dim=-1).mean((0, 1))
    torch.testing.assert_close(mean_token, expected, atol=1e-4, rtol=0)
    digest = hashlib.sha256((folder / FILE).read_bytes()).hexdigest()
    assert recorded["whitening_sha256"] == digest
    assert own == content | {"tokens.whitening": digest}
    (folder / FILE).write_bytes(b"x")
    with pytest.raises(UserError, match=r"whitening\.npy is damaged .*; delete it, and it is made again"):
        track.open(teacher(whiten=True))


@pytest.mark.slow
def test_tokens_without_a_store_are_refused(make_track: Callable[..., PixelTrackCaches]) -> None:
    with pytest.raises(UserError, match=r"teacher\.whiten=true needs stored tokens"):
        make_track(online_teacher=True).open(teacher(whiten=True))


@pytest.mark.slow
def test_a_run_trains_towards_whitened_tokens(small_sit: list[str], trainer_of: Build) -> None:
    trainer = trainer_of(*small_sit, "teacher.whiten=true")
    batch = trainer.reader.read(0)[0]
    target = batch.teachers[""]
    usual = trainer_of(*small_sit).reader.read(0)[0].teachers[""]
    folder = Path(str(trainer.reader.cache.tokens[""].folder))
    whitening = Whitening.of_file((folder / FILE).read_bytes())
    expected = (usual.x_BND.float() - whitening.mean_D) @ whitening.matrix_DD
    torch.testing.assert_close(target.x_BND, expected, atol=1e-4, rtol=1e-4)
    update = trainer.update(0, [batch], with_tap_gradients=False)
    assert update.terms.means()["token"].isfinite()
