"""Distances between the run's images and real ones, in the features of encoders that each result names.

Real images are the track's decoded latents, like the run's own images: with a VAE, they are its reconstructions of
photographs, so that its errors affect both sides. `final/fd/NAME` and the others compare with training images;
`floor/...` are the same values of held-out real images. `final/fd_se/NAME` and `floor/fd_se/NAME` are the standard
errors of the Fréchet distances over resamplings of the generated or the held-out images; with fewer than 20 images
there are none.

Shapes: B images, S image size, n rows, D features.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save
from torch import Tensor

from urepa.core import progress, random_draws
from urepa.core.errors import UserError
from urepa.core.files import DAMAGED, lock_folder, write_whole
from urepa.core.types import Tokens
from urepa.data.cache import UNKNOWN
from urepa.data.lists.samples import Sample, Samples, fixed_order
from urepa.data.stages.vae import scaling_of
from urepa.data.stages.vae_config import NEUTRAL
from urepa.evaluation.context import Context, Incomplete
from urepa.evaluation.frechet_and_kid import (
    FEWEST_OF_ERROR,
    Moments,
    frechet_distance,
    frechet_error,
    inception_score,
    kernel_distance,
    precision_recall,
)
from urepa.evaluation.image_counts import cache_counts
from urepa.evaluation.images.generated_images_math import decode_rgb
from urepa.evaluation.measures.generation import Generation
from urepa.evaluation.measures.inception_score import InceptionScore

CHUNK = 64  # real images decoded and encoded at a time
KEPT_EVERY = 32 * CHUNK  # at most this much work is lost in a kill


class FeatureSet:
    """Features of images that arrive batch by batch: moments of all, and the first `subset` rows. Memory depends only
    on `subset`."""

    def __init__(self, subset: int) -> None:
        self.subset, self.count = subset, 0
        self._moments: Moments | None = None
        self._kept: list[np.ndarray] = []

    def add(self, x_BD: np.ndarray) -> None:
        """Adds a batch."""
        if self._moments is None:
            self._moments = Moments(x_BD.shape[1])
        self.moments.add(x_BD)
        if self.count < self.subset:
            self._kept.append(x_BD[: self.subset - self.count].copy())
        self.count += len(x_BD)

    @property
    def moments(self) -> Moments:
        """The moments of all rows."""
        assert self._moments is not None, "nothing was added"
        return self._moments

    @property
    def rows_nD(self) -> np.ndarray:
        """The rows that were kept, at most `subset`."""
        return np.concatenate(self._kept)

    def save(self, file: Path, facts: str) -> None:
        """Saves the current state, and as metadata `facts`, on which the features depend, and the content's digest."""
        tensors = {"mean": self.moments.mean_D, "scatter": self.moments.scatter_DD, "rows": self.rows_nD}
        tensors["count"] = np.array(self.count)
        write_whole(file, save(tensors, {"facts": facts, "blake2b": _digest(tensors)}))

    @staticmethod
    def load(file: Path, subset: int, facts: str) -> "FeatureSet":
        """The saved state; an empty set if there is none. A file that is damaged or of other facts is named and not
        used. Files of earlier versions, which have no metadata, are identified by their names."""
        found = FeatureSet(subset)
        if not file.exists():
            return found
        try:
            tensors = load_file(file)
            with safe_open(file, "np") as opened:
                metadata = opened.metadata() or {}
            if metadata.get("blake2b", _digest(tensors)) != _digest(tensors):
                raise ValueError("its content is not what was written")
            if metadata.get("facts", facts) != facts:
                raise ValueError("it is of other images or another encoder")
            count, mean_D, scatter_DD, rows_nD = (tensors[name] for name in ("count", "mean", "scatter", "rows"))
        except (SafetensorError, *DAMAGED) as error:
            print(f"warning: {file} is not used and computed again: {error}")
            return found
        found.count, found._kept = int(count), [rows_nD]
        found._moments = Moments(len(mean_D))
        found._moments.count, found._moments.mean_D, found._moments.scatter_DD = found.count, mean_D, scatter_DD
        return found


def _digest(tensors: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape}\0".encode())
        digest.update(np.ascontiguousarray(tensor).tobytes())
    return digest.hexdigest()


def measure_distances(asked: Generation, context: Context) -> dict[str, float]:
    """The distances in the features of every available encoder. Raises `Incomplete` if one is not available."""
    asked.check_images(cache_counts(context.cache))
    encoders, lacking = available_encoders(asked.encoders)
    if lacking and not encoders:
        raise UserError("; ".join(lacking.values()))
    metrics = _measure(asked, context, encoders)
    if lacking:
        raise Incomplete(metrics, lacking)
    return metrics


def available_encoders(declared: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The encoders whose weights are there, before anything is generated, and for the others, as "encoders.NAME", why
    theirs are not."""
    encoders, lacking = {}, {}
    for name, declaration in declared.items():
        encoder = declaration.build()
        try:
            encoder.weights_sha256()
            encoders[name] = encoder
        except UserError as error:
            lacking[f"encoders.{name}"] = str(error)
    return encoders, lacking


def _measure(asked: Generation, context: Context, encoders: dict[str, Any]) -> dict[str, float]:
    reference, held_out = _real(asked, context)
    generated = {name: FeatureSet(asked.subset) for name in encoders}
    for _, rgb in asked.images.rgb(context):
        for name, encoder in encoders.items():
            generated[name].add(encode_images(context, encoder, rgb))
    real = real_features(context, encoders, reference, asked.subset)
    floor = real_features(context, encoders, held_out, asked.subset)
    metrics: dict[str, float] = {}
    for name, encoder in encoders.items():
        metrics |= _distances(asked, "final", name, real[name], generated[name])
        if held_out:
            beside = _distances(asked, "floor", name, real[name], floor[name])
            metrics |= {key: value for key, value in beside.items() if not key.startswith("floor/kid_sd/")}
        if is_circular(context, encoder):
            metrics[f"final/circular/{name}"] = 1.0
            print(f"{name} is the teacher that this run aligns to: distances in its features are circular")
    return metrics


def _real(asked: Generation, context: Context) -> tuple[Samples, Samples]:
    """The training images for comparison, and as many held-out ones as images are generated; none if there are
    fewer."""
    train = _shuffle(context.cache.splits["train"])
    wanted = len(train) if asked.reference_images is None else asked.reference_images
    splits = context.cache.splits
    held_out = _shuffle(Samples.concatenate(splits[split] for split in ("val", "test") if split in splits))
    if len(held_out) < asked.images.count:
        print(f"{len(held_out)} held-out images give no floor for {asked.images.count} generated ones")
        held_out = held_out[:0]
    return train[:wanted], held_out[: asked.images.count]


def _distances(asked: Generation, kind: str, name: str, real: FeatureSet, other: FeatureSet) -> dict[str, float]:
    rng = random_draws.generator(0, "kid")
    kid = kernel_distance(real.rows_nD, other.rows_nD, asked.kid_subsets, asked.kid_subset_size, rng)
    precision, recall = precision_recall(real.rows_nD, other.rows_nD, asked.neighbours)
    has_error = len(other.rows_nD) >= FEWEST_OF_ERROR
    error = {f"{kind}/fd_se/{name}": frechet_error(real.moments, other.rows_nD, other.count)} if has_error else {}
    return error | {
        f"{kind}/fd/{name}": frechet_distance(real.moments, other.moments),
        f"{kind}/kid/{name}": kid.mean,
        f"{kind}/kid_sd/{name}": kid.sd,
        f"{kind}/precision/{name}": precision,
        f"{kind}/recall/{name}": recall,
    }


def score_classes(asked: InceptionScore, context: Context) -> dict[str, float]:
    """The Inception Score, and its standard deviation over parts of the images."""
    asked.check_images(cache_counts(context.cache))
    encoder = asked.encoder.build()
    encoder.weights_sha256()  # raises here if they are missing, not after sampling
    batches = []
    for _, rgb in asked.images.rgb(context):
        with torch.autocast(context.device.type, enabled=False):  # encoders have their own precision
            batches.append(encoder.probabilities(rgb).cpu().numpy())
    score = inception_score(np.concatenate(batches), asked.splits)
    return {"final/inception_score": score.mean, "final/inception_score_sd": score.sd}


def image_features(tokens: Tokens) -> Tensor:
    """An image's features [B,D]: √D × the mean of its tokens. A teacher's tokens have unit length. In these units they
    have a mean square of 1 per dimension, for which the kernel of KID, (x·y / D + 1)³, is designed."""
    return tokens.x_BND.float().mean(1) * tokens.x_BND.shape[2] ** 0.5


def encode_tokens(context: Context, encoder: Any, rgb_B3SS: Tensor) -> Tokens:
    """The encoder's tokens, computed on the run's device, in the encoder's precision, not in the run's."""
    with torch.no_grad(), torch.autocast(context.device.type, enabled=False):
        tokens: Tokens = encoder.tokens(rgb_B3SS.to(context.device))
    return tokens


def encode_images(context: Context, encoder: Any, rgb_B3SS: Tensor) -> np.ndarray:
    """Features [B,D], float32."""
    return image_features(encode_tokens(context, encoder, rgb_B3SS)).cpu().numpy()


def is_circular(context: Context, encoder: Any) -> bool:
    """Whether the encoder is a network to which the run is aligned, by name or by weights, which may have several
    names. If the teacher's weights are unknown and it might be the same network, a warning is printed."""
    own = encoder.manifest()
    for teacher in context.aligned_to:
        if all(teacher.get(key) == own.get(key) for key in ("family", "model")):
            return True
        if teacher.get("weights_sha256", UNKNOWN) != UNKNOWN:
            if teacher["weights_sha256"] == encoder.weights_sha256():
                return True
        elif "family" in own and all(teacher.get(key) in (own[key], UNKNOWN) for key in ("family", "width")):
            names = f"{own['model']} and the teacher {teacher.get('model')}"
            print(
                f"warning: {names} may be one network: the teacher's weights are not known. Distances may be circular"
            )
    return False


def real_features(
    context: Context, encoders: dict[str, Any], samples: Sequence[Sample], subset: int
) -> dict[str, FeatureSet]:
    """Features of real images in each encoder. They are computed once for all runs of a track and stored next to its
    latents; a computation that is interrupted by a kill is continued, and of several runs at once one computes."""
    places = {name: _place(context, name, encoder, samples, subset) for name, encoder in encoders.items()}
    found = {name: FeatureSet.load(file, subset, facts) for name, (file, facts) in places.items()}
    if all(features.count == len(samples) for features in found.values()):
        return found
    with contextlib.ExitStack() as locked:
        if places and _is_locked(locked, next(iter(places.values()))[0].parent):
            found = {name: FeatureSet.load(file, subset, facts) for name, (file, facts) in places.items()}
        _complete(context, encoders, samples, found, places)
    return found


def _is_locked(locked: contextlib.ExitStack, folder: Path) -> bool:
    """Waits for other runs that compute features of this track; False if the folder cannot be written."""
    try:
        locked.enter_context(lock_folder(folder, f"waiting for {folder}, which another run makes"))
    except OSError:
        return False
    return True


def _complete(
    context: Context,
    encoders: dict[str, Any],
    samples: Sequence[Sample],
    found: dict[str, FeatureSet],
    places: dict[str, tuple[Path, str]],
) -> None:
    """Computes what is missing in `found`."""
    with progress.bar(
        total=len(samples), desc=f"features of {len(samples):,} real images", unit="image", leave=False
    ) as bar:
        for start in range(0, len(samples), CHUNK):
            part = samples[start : start + CHUNK]
            missing = [name for name in encoders if found[name].count <= start]
            if not missing:
                progress.skip_done(bar, len(part))
                continue
            rgb = decode_rgb(context, context.cache.x0(part))
            done = start + len(part)
            for name in missing:
                found[name].add(encode_images(context, encoders[name], rgb))
                if done % KEPT_EVERY == 0 or done == len(samples):
                    _save_features(found[name], *places[name])
            bar.update(len(part))


def _place(context: Context, name: str, encoder: Any, samples: Sequence[Sample], subset: int) -> tuple[Path, str]:
    """The file of features, which is named by everything on which they depend, and the same as text."""
    latents = context.cache.latents
    facts: tuple[Any, ...] = (encoder.manifest(), encoder.weights_sha256(), context.device.type, subset)
    if context.track.autoencoder is not None:
        facts += (_decoder_sha256(context.track.autoencoder),)
    made = latents.mark.stat().st_mtime_ns  # latents that are made again count as different
    digest = random_draws.digest64("features", facts, latents.manifest, made, *(s.sample_id for s in samples))
    file = latents.folder.parent / "features" / f"{name}-{len(samples)}-{digest:016x}.safetensors"
    return file, json.dumps([*facts, latents.manifest, f"{len(samples)} samples, {digest:016x}"], default=str)


def _decoder_sha256(vae: Any) -> str:
    """A digest of the network that decodes latents."""
    scaling = {key: value for key, value in scaling_of(vae).facts().items() if key in NEUTRAL}
    factor = vae.config.get("scaling_factor", 1.0)
    digest = hashlib.sha256(str(factor).encode() + (str(scaling).encode() if scaling else b""))
    for name, tensor in sorted(vae.state_dict().items()):
        if not name.startswith(("encoder.", "quant_conv.")):
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _save_features(found: FeatureSet, file: Path, facts: str) -> None:
    try:
        file.parent.mkdir(exist_ok=True)
        found.save(file, facts)
    except OSError as error:  # the track's folder may be read-only, or the disk full
        _say_not_kept(file.parent, error.strerror or str(error))


@cache
def _say_not_kept(folder: Path, why: str) -> None:
    """Once in a process."""
    print(f"warning: the features of the real images are not kept for later runs ({folder}: {why})")


def _shuffle(samples: Samples) -> Samples:
    """The samples in a pseudo-random order that depends only on their ids."""
    return samples[fixed_order(samples, "generation")]
