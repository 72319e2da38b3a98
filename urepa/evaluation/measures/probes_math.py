"""k-NN and logistic regression on frozen features, under the null condition: the quick probe and the full probes.

Shapes: B samples, N tokens, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from urepa.core.types import Tokens
from urepa.data.lists.samples import Sample
from urepa.evaluation import attention
from urepa.evaluation.attention import TokenFile, apply_pool
from urepa.evaluation.context import Context
from urepa.evaluation.features import (
    Chunk,
    Pool,
    held_out_samples,
    labels_of,
    mean_token,
    pool_chunks,
    subset,
    tap_pool,
    teacher_means,
    teacher_tokens,
    time_label,
)
from urepa.evaluation.frozen_features import FrozenFeatures
from urepa.evaluation.image_counts import cache_counts
from urepa.evaluation.knn_and_linear import Labels, Vectors, knn_scores, linear_scores
from urepa.evaluation.measures.knn import Knn
from urepa.evaluation.measures.linear_probe import LinearProbe
from urepa.evaluation.measures.tap_probe import TapProbe
from urepa.method.training_step import AlignedModel

Parts = tuple[list[Sample], list[Sample]]  # training and held-out images
Reader = Callable[[Vectors, Labels], dict[str, float]]


def _parts(context: Context, train_images: int, test_images: int) -> Parts:
    """The images for fitting and for scoring, chosen only by their ids."""
    return subset(context.cache.splits["train"], train_images), subset(held_out_samples(context), test_images)


def probe_tap(asked: TapProbe, context: Context) -> dict[str, float]:
    """The quick probe of the tap."""
    asked.check_images(cache_counts(context.cache))
    parts = _parts(context, asked.train_images, asked.test_images)
    labels = labels_of(parts[0]), labels_of(parts[1])
    pools = {"tap": tap_pool(asked.tap)}
    fitted, read = (pool_chunks(context, part, (asked.tap,), asked.timestep, pools)["tap"] for part in parts)
    pixels, others = (context.cache.x0(part).flatten(1).numpy() for part in parts)
    metrics = {
        "final/tap_knn": knn_scores((fitted, read), labels, asked.knn)[""],
        "final/tap_linear_probe": linear_scores((fitted, read), labels)[""],
        "final/pixel_knn": knn_scores((pixels, others), labels, asked.knn)[""],
    }
    if context.cache.tokens:
        fitted, read = (teacher_means(context, part) for part in parts)
        metrics["final/teacher_knn"] = knn_scores((fitted, read), labels, asked.knn)[""]
    return metrics


def read_neighbours(asked: Knn, context: Context) -> dict[str, float]:
    """The full probe by k-NN."""
    asked.check_images(cache_counts(context.cache))
    return _read(asked, context, "knn", partial(knn_scores, k=asked.k))


def read_linearly(asked: LinearProbe, context: Context) -> dict[str, float]:
    """The full probe by logistic regression."""
    asked.check_images(cache_counts(context.cache))
    return _read(asked, context, "linear_probe", linear_scores)


def _read(asked: FrozenFeatures, context: Context, name: str, reader: Reader) -> dict[str, float]:
    """`final/<name>/<what>` at `timestep`, and `final/<name>/<what>_by_t/<t>` if `timesteps` has more."""
    parts = _parts(context, asked.train_images, asked.test_images)
    labels = labels_of(parts[0]), labels_of(parts[1])
    grid = sorted({asked.timestep, *asked.timesteps})
    by_t = {t: _score_vectors(_vectors(asked.tap, context, context.model, parts, t), labels, reader) for t in grid}
    metrics = {f"final/{name}/{what}": score for what, score in by_t[asked.timestep].items()}
    if context.cache.tokens:
        ceiling = _score_vectors(_teacher_vectors(context, parts), labels, reader)
        metrics |= {f"final/{name}/{what}": score for what, score in ceiling.items()}
    for floor, build in context.floors.items():
        found = _score_vectors(_vectors(asked.tap, context, build(), parts, asked.timestep), labels, reader)
        metrics |= {f"final/{name}/{floor}_{what}": score for what, score in found.items()}
    if len(grid) > 1:
        for t, found in by_t.items():
            metrics |= {
                f"final/{name}/{what}_by_t/{time_label(context.objective, t)}": score for what, score in found.items()
            }
    return metrics


def _vectors(tap: str, context: Context, model: AlignedModel, parts: Parts, timestep: float) -> dict[str, Vectors]:
    """The vectors of the tap and of its head, if it has one. The features of the training images are computed once, and
    their tokens are kept on disk for training the query; then those of the held-out images are computed once."""
    sources: dict[str, Callable[[Chunk], Tokens]] = {"tap": lambda chunk: chunk.taps[tap]}
    if context.head_at(tap) is not None:
        sources["head"] = lambda chunk: chunk.heads[tap]
    files = {what: TokenFile(context.folder) for what in sources}

    def keep(what: str, chunk: Chunk) -> Tensor:
        files[what].append(sources[what](chunk))
        return mean_token(sources[what](chunk))

    pools: dict[str, Pool] = {what: partial(keep, what) for what in sources}
    fitted = pool_chunks(context, parts[0], (tap,), timestep, pools, model)
    for what, source in sources.items():
        query = attention.train(files[what].rows, labels_of(parts[0]), context.device)
        fitted[f"{what}_attention"] = apply_pool(files[what].rows, len(parts[0]), query)
        pools |= {what: _pool_of(source, mean_token), f"{what}_attention": _pool_of(source, query)}
    read = pool_chunks(context, parts[1], (tap,), timestep, pools, model)
    return {what: (fitted[what], read[what]) for what in pools}


def _teacher_vectors(context: Context, parts: Parts) -> dict[str, Vectors]:
    fitted, read = (_rows_of(context, part) for part in parts)
    query = attention.train(fitted, labels_of(parts[0]), context.device)
    return {
        what: (apply_pool(fitted, len(parts[0]), pool), apply_pool(read, len(parts[1]), pool))
        for what, pool in (("teacher", mean_token), ("teacher_attention", query))
    }


def _rows_of(context: Context, samples: list[Sample]) -> attention.Rows:
    return lambda indices: teacher_tokens(context, [samples[i] for i in indices])


def _pool_of(source: Callable[[Chunk], Tokens], pool: Callable[[Tokens], Tensor]) -> Pool:
    return lambda chunk: pool(source(chunk))


def _score_vectors(vectors: dict[str, Vectors], labels: Labels, reader: Reader) -> dict[str, float]:
    """The scores of each kind of vectors, by name and the score's suffix."""
    return {f"{what}{top}": score for what, pair in vectors.items() for top, score in reader(pair, labels).items()}
