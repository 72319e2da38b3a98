"""Evaluates a run's model on the data of another run: its validation images, captions or classes, and real images.

The teacher's tokens of these data are not read, so evaluations that compare with a teacher report that there is none.

Shapes: B samples of a group, CHW latent.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from urepa.config.declared import declaration_of
from urepa.core.class_token_protocols import class_values
from urepa.core.errors import UserError
from urepa.core.part_names import CLASS
from urepa.core.track_protocols import Track, condition_widths
from urepa.data.bucketed_cache import Caches
from urepa.data.cache import UNKNOWN, Cache
from urepa.data.reader import ValidationReader
from urepa.data.stages.vae_config import NEUTRAL
from urepa.evaluation.context import Context, Incomplete, run_each
from urepa.evaluation.image_counts import cache_counts
from urepa.evaluation.measures.elsewhere import Elsewhere
from urepa.evaluation.other_run import named_run, other_config, refuse_differing
from urepa.method.training_step import AlignedModel, step_terms
from urepa.models.token_draws import draw_purposes
from urepa.runs.summary import read_summary

GROUP = 64  # validation images at a time
WEIGHTS = "weights_sha256"


def evaluate_elsewhere(asked: Elsewhere, context: Context) -> dict[str, float]:
    """The diffusion loss and the values of the evaluations, under renamed keys. Raises `Incomplete` if some of the
    evaluations failed."""
    if class_values(context.model.backbone):
        raise UserError("this run's backbone denoises a class token of its teacher's; leave this evaluation out")
    with _opened(asked, "") as (track, caches):
        other = _context(asked, context, track, caches)
        metrics = diffusion_losses(other, other.model)
        before = diffusion_losses(other, other.untrained())
        metrics["final/untrained_diffusion"] = before["final/diffusion"]
        evaluated = run_each(other, asked.evaluations, lambda declared: declared)
    metrics = {asked.nested.key(key): value for key, value in (metrics | evaluated.metrics).items()}
    if evaluated.failures:
        raise Incomplete(metrics, {f"evaluations.{name}": why for name, why in evaluated.failures.items()})
    return metrics


@torch.no_grad()
def diffusion_losses(context: Context, model: AlignedModel) -> dict[str, float]:
    """A model's mean diffusion loss over the validation images of the context's cache, with the noise and times of
    ordinary validation; and that of predicting zero."""
    objective = context.objective
    group = min(GROUP, len(context.cache.splits["val"]))
    reader = ValidationReader(context.cache, objective, group, draw_purposes(model))
    sums = torch.zeros(3, dtype=torch.float64)
    for index in range(len(reader.groups)):
        batch = replace(reader.read(index).to(context.device), is_aligned=False)
        terms, _ = step_terms(model, objective, context.loss, batch, context.step, nn.Identity())
        target = objective.target(batch.x0, batch.noise, batch.t_B)
        zero_B = objective.diffusion_terms(torch.zeros_like(target), target, batch.t_B)
        both = terms.per_sample["diffusion"].double().sum(), zero_B.double().sum()
        sums += torch.stack([torch.tensor(float(len(batch.ids)), dtype=torch.float64), *(x.cpu() for x in both)])
    count, diffusion, zero = sums.tolist()
    return {"final/diffusion": diffusion / count, "floor/zero_predictor": zero / count}


def check_caches(asked: Elsewhere, cache: Caches, place: str) -> None:
    """Raises UserError if the caches of the other run are of other data than it was trained on, do not fit a model that
    was trained on `cache`, or have too few images for an evaluation."""
    with _opened(asked, place) as (track, caches):
        for own in cache.buckets:
            found = _bucket_like(named_run(asked.run, place), own, caches, track)
            for name, evaluation in asked.evaluations.items():
                if hasattr(evaluation, "check_images"):
                    evaluation.check_images(cache_counts(found), f"{place}evaluations.{name}.")


@contextlib.contextmanager
def _opened(asked: Elsewhere, place: str) -> Iterator[tuple[Any, Caches]]:
    """The other run's track and its caches without a teacher. Raises UserError if they are not there, or if they have
    other samples than the run recorded."""
    named = named_run(asked.run, place)
    track = declaration_of(other_config(asked.run, place)["data"]).build()
    try:
        caches = track.open(None)
    except UserError as error:
        raise UserError(f"{named}: {error}") from error
    try:
        recorded = ((read_summary(Path(str(asked.run))) or {}).get("data") or {}).get("content", {})
        here = caches.fingerprint()["content"]
        if changed := sorted(key for key in recorded.keys() & here.keys() if recorded[key] != here[key]):
            raise UserError(f"{named} was trained on other data than {track.folder} has now ({', '.join(changed)})")
        yield track, caches
    finally:
        caches.close()


def _bucket_like(named: str, own: Cache, caches: Caches, track: Track) -> Cache:
    """The other run's bucket with x0 of the same shape. Raises UserError if there is none, if images or captions were
    encoded otherwise, or if the ids of classes mean other classes."""
    shape = tuple(own.latents.shape[-3:])
    found = next((bucket for bucket in caches.buckets if tuple(bucket.latents.shape[-3:]) == shape), None)
    if found is None:
        raise UserError(f"{named} has no images with x0 of {'x'.join(map(str, shape))}; name a run that has")
    if own.image_tokens is not None or found.image_tokens is not None:
        raise UserError(
            f"{named}: conditions with image tokens depend on a run's own images; leave this evaluation out"
        )
    refuse_differing(named, _encoded_by(found), _encoded_by(own))
    if CLASS in condition_widths(track):
        refuse_differing(named, {"classes": list(found.class_names)}, {"classes": list(own.class_names)})
    return found


def _encoded_by(cache: Cache) -> dict[str, Any]:
    """What made x0 and the records of captions, from the stores' manifests."""
    latents = {f"latents.{key}": cache.latents.manifest.get(key, NEUTRAL.get(key)) for key in ("vae", *NEUTRAL)}
    encoder: Mapping[str, Any] = {} if cache.text is None else cache.text.manifest["encoder"]
    known = encoder.get(WEIGHTS, UNKNOWN) != UNKNOWN
    # equal weights are one network, wherever their files are
    text = {f"text_encoder.{key}": value for key, value in encoder.items() if key != "model" or not known}
    return latents | text


def _context(asked: Elsewhere, context: Context, track: Any, caches: Caches) -> Context:
    """The context with the other run's data. Parts that the run's training never gave are not given here either."""
    found = _bucket_like(named_run(asked.run, ""), context.cache, caches, track)
    conditions: Any = replace(found.conditions, dropout=context.cache.conditions.dropout)  # type: ignore[type-var]
    digest = hashlib.blake2b(json.dumps(found.content(), sort_keys=True).encode(), digest_size=4).hexdigest()
    folder = context.folder / "elsewhere" / digest  # images of several other runs are kept apart
    folder.mkdir(parents=True, exist_ok=True)
    return replace(
        context,
        track=track.of_bucket(found.bucket) if found.bucket else track,
        cache=replace(found, conditions=conditions, grids=context.cache.grids),
        own_cache=context.cache,
        folder=folder,
    )
