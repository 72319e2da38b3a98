"""The one loop over samples on which all evaluations of the representation are based."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from class_ids import of_ids

from urepa.core import random_draws
from urepa.core.errors import UserError
from urepa.core.types import Tokens
from urepa.evaluation import features
from urepa.evaluation.context import Context
from urepa.evaluation.features import (
    chunks,
    held_out_samples,
    mean_token,
    pool_chunks,
    require_head,
    tap_pool,
    teacher_means,
    teacher_tokens,
)


def with_other_labels(samples: list[Any]) -> list[Any]:
    return [replace(s, class_id=(s.class_id + 1) % 10) for s in samples]


@pytest.mark.slow
def test_chunks_contain_the_models_output_under_the_null_condition(context: Context) -> None:
    samples = context.cache.splits["train"][:6]
    (chunk,) = chunks(context, samples, ("mid",), 500)
    x0 = context.cache.x0(samples)
    noise = torch.stack(
        [
            random_draws.normal(
                tuple(x0.shape[1:]), random_draws.generator(random_draws.digest64("probe", s.sample_id), "noise")
            )
            for s in samples
        ]
    )
    t_B, null = torch.full((6,), 500), context.cache.num_classes
    with torch.no_grad():
        x_t = context.objective.corrupt(x0, noise, t_B)
        output = context.model(x_t, t_B, of_ids(torch.full((6,), null), null), None, {"": (2, 2)})
    assert torch.equal(chunk.taps["mid"].x_BND, output.features["mid"].x_BND)
    assert torch.equal(chunk.heads["mid"].x_BND, output.tokens["mid"].x_BND)
    assert chunk.heads["mid"].grid == (2, 2)


@pytest.mark.slow
def test_shuffled_labels_change_nothing(context: Context) -> None:
    samples = context.cache.splits["train"]
    pools = {"tap": tap_pool("mid"), "head": lambda chunk: mean_token(chunk.heads["mid"])}
    kept, other = (pool_chunks(context, s, ("mid",), 500, pools) for s in (samples, with_other_labels(samples)))
    assert kept.keys() == {"tap", "head"}
    assert all(np.array_equal(kept[name], other[name]) for name in pools)


@pytest.mark.slow
def test_features_do_not_depend_on_the_chunk_size(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = context.cache.splits["train"]
    whole = pool_chunks(context, samples, ("mid",), 500, {"tap": tap_pool("mid")})["tap"]
    monkeypatch.setattr(features, "CHUNK", 7)  # 40 samples: the last chunk has 5
    parts = pool_chunks(context, samples, ("mid",), 500, {"tap": tap_pool("mid")})["tap"]
    assert parts.shape == (40, 64)
    np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-5)
    assert np.array_equal(teacher_means(context, samples), context.cache.teacher_BND(samples).float().mean(1).numpy())


def test_teacher_tokens_are_moved_to_the_cpu(context: Context) -> None:
    """An online teacher's tokens are on the GPU. Here they are on a device from which nothing can be copied."""
    store: Any = SimpleNamespace(tensor=lambda keys: torch.empty(len(keys), 4, 3, device="meta"))
    online = replace(context, cache=replace(context.cache, tokens={"": store}))
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        teacher_tokens(online, context.cache.splits["train"][:2])


def test_masked_tokens_do_not_count() -> None:
    x_BND = torch.tensor([[[1.0], [3.0], [100.0]]])
    assert mean_token(Tokens(x_BND, (1, 3), torch.tensor([[True, True, False]]))).tolist() == [[2.0]]


def test_unknown_taps_times_and_heads_are_user_errors(make_context: Callable[..., Context]) -> None:
    context = make_context("loss=none")
    samples = context.cache.splits["train"][:3]
    (chunk,) = chunks(context, samples, ("mid",), 0)  # the tap is
    assert list(chunk.taps) == ["mid"]
    assert not chunk.heads
    for tap, timestep, why in (("midd", 0, "midd"), ("mid", 1000, "1000 is not a time of this run")):
        with pytest.raises(UserError, match=why):
            next(chunks(context, samples, (tap,), timestep))
    with pytest.raises(UserError, match="no head on 'mid'; it has none"):
        require_head(context, "mid")
    with pytest.raises(UserError, match="no teacher tokens to compare with .loss=none."):
        teacher_means(context, samples)


def test_where_there_is_no_test_split_validation_images_are_read(context: Context) -> None:
    assert held_out_samples(context) == context.cache.splits["test"]
    without = {k: v for k, v in context.cache.splits.items() if k != "test"}
    assert (
        held_out_samples(replace(context, cache=replace(context.cache, splits=without))) == context.cache.splits["val"]
    )
