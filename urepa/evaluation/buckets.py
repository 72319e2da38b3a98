"""Evaluates a run whose images have several shapes: each evaluation is done in every bucket separately.

A value's key in a bucket is `bucket/HxW/KEY`; `KEY` itself is the mean over the buckets, weighted by their training
images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from urepa.data.cache import Cache
from urepa.evaluation.context import Context, Evaluated, run_each


def bucket_key(bucket: str, key: str) -> str:
    """The key of a value in one bucket."""
    return f"bucket/{bucket}/{key}"


def bucket_folder(folder: Path, bucket: Cache) -> Path:
    """The folder in which evaluations of a bucket write their files: the run's folder, or a folder per bucket in it."""
    return folder / "buckets" / bucket.bucket if bucket.bucket else folder


def run_in_buckets(
    contexts: Sequence[Context], evaluations: dict[str, Any], declaration_of: Callable[[Any], Any]
) -> Evaluated:
    """Runs every evaluation of a config's `evaluation` in each bucket. `contexts` has one context per bucket."""
    for context in contexts:
        context.folder.mkdir(parents=True, exist_ok=True)
    if len(contexts) == 1:
        return run_each(contexts[0], evaluations, declaration_of)
    found: dict[str, Evaluated] = {}
    for context in contexts:
        found[context.cache.bucket] = run_each(context, evaluations, declaration_of)
    weights = {context.cache.bucket: len(context.cache.splits["train"]) for context in contexts}
    metrics = mean_over_buckets({name: one.metrics for name, one in found.items()}, weights)
    keys: dict[str, list[str]] = {}
    failures: dict[str, str] = {}
    for name, one in found.items():
        metrics |= {bucket_key(name, key): value for key, value in one.metrics.items()}
        for evaluation, own in one.keys.items():
            keys.setdefault(evaluation, []).extend(bucket_key(name, key) for key in own)
        for evaluation, why in one.failures.items():
            failures.setdefault(evaluation, f"in bucket {name}: {why}")
    for evaluation, own in found[contexts[0].cache.bucket].keys.items():
        keys[evaluation] = sorted([*keys[evaluation], *(key for key in own if key in metrics)])
    return Evaluated(metrics, failures, keys)


def mean_over_buckets(metrics: dict[str, dict[str, float]], weights: dict[str, int]) -> dict[str, float]:
    """The weighted means of the values that every bucket has, by key."""
    total = sum(weights.values())
    shared = set.intersection(*(set(values) for values in metrics.values()))
    return {
        key: sum(weights[name] * values[key] for name, values in metrics.items()) / total
        for key in next(iter(metrics.values()))
        if key in shared
    }
