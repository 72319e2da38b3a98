"""A run opened for use: its model under EMA weights, its objective and its track. No cache is needed.

Shapes: B images, C channels, H and W rows and columns of an image in pixels, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from urepa.config.declared import declaration_of
from urepa.core import random_draws
from urepa.core.conditions import Condition
from urepa.core.errors import UserError
from urepa.core.nested_dicts import flatten, move_paths, replace_value
from urepa.core.protocols import Teacher
from urepa.core.teacher_names import ALONE
from urepa.core.types import Denoised, Tokens, no_rows
from urepa.data.image_statistics import ImageStatistics
from urepa.data.sources.decoding import UNREADABLE, read
from urepa.data.stages.vae import scaling_of
from urepa.data.stages.vae_config import refuse_other_scaling
from urepa.method.objectives.objective_math import ObjectiveMath
from urepa.method.self_alignment import own_states
from urepa.method.training_step import AlignedModel
from urepa.models.teachers.rectangle_sizes import grid_for
from urepa.models.teachers.several_teachers import name_at
from urepa.models.weight_files import trainable
from urepa.runs import checkpoint
from urepa.runs.run_folder import require_config
from urepa.runs.summary import read_summary
from urepa.training.assembly import build_loss, build_model, build_part
from urepa.training.provenance import bucket_names

# keys whose paths may be replaced, for a run that was trained elsewhere
PLACES = (
    "data.root",
    "data.vae",
    "data.text_encoder.model",
    "data.text_encoder.llama",
    "data.image_encoder.model",
    "backbone.weights",
)


@dataclass(repr=False)
class OpenedRun:
    """The result of `urepa.load`. The model is in eval mode, frozen and in fp32."""

    folder: Path
    step: int
    config: dict[str, Any]
    model: AlignedModel
    objective: ObjectiveMath
    track: Any
    device: torch.device
    made_latents: dict[str, Any] = field(default_factory=dict)  # the manifest of a finished run's latents
    buckets: Sequence[str] = ("",)  # names of the data's buckets; one empty name if all have one shape
    made_text: dict[str, Any] | None = None  # as `made_latents`, for its captions
    image_statistics: ImageStatistics | None = None  # of an export; None: those of the caches at data.root

    def __post_init__(self) -> None:
        self._trained = trainable(self.model)
        self.model.to(self.device).eval().requires_grad_(False)

    def __repr__(self) -> str:
        taps = ", ".join(aligned_taps(self.config)) or "none"
        return f"OpenedRun('{self.folder}', step {self.step}, aligned taps: {taps})"

    @cached_property
    def autoencoder(self) -> Any:
        """The network between images and x0; None if there is none. Raises UserError if its weights cannot be loaded,
        or the run was trained on latents with other constants."""
        vae = self.track.autoencoder
        if "scaling_factor" in self.made_latents:
            refuse_other_scaling(self.folder, self.made_latents, scaling_of(vae), self.track.vae)
        return vae

    def track_of(self, bucket: str | None) -> Any:
        """The track with the shapes of a bucket; `bucket` is None or empty if the track has no buckets."""
        return self.track.of_bucket(bucket) if bucket else self.track

    def condition(self, class_ids: Sequence[int]) -> Condition:
        """The condition of these classes, on the device; the null condition if no sample of training had a class."""
        return self.track.conditions.of_classes(class_ids).to(self.device)

    def prompt_condition(
        self,
        prompts: Sequence[str],
        image: str | Path | None = None,
        bucket: str | None = None,
        size: str | None = None,
    ) -> Condition:
        """The condition of these texts, on the device; an empty text is the null condition. Raises UserError if the
        run's conditions are not texts.

        Args:
            image: a file, for a run whose conditions have an image, which is the same for all prompts; None: without.
            bucket, size: the images' shape, where conditions have an image: a bucket's name, or rows and columns in
                pixels as text, "512x768"; both None: that of the first bucket.
        """
        if not hasattr(self.track.conditions, "of_prompts"):
            raise UserError("this run's conditions are classes, not texts: give classes")
        if not hasattr(self.track.conditions, "of_size"):
            condition: Condition = self._conditions_of(self.track).of_prompts(prompts)
            return condition.to(self.device)
        track = self.track_of(bucket) if size is None else self.track.of_size(tuple(map(int, size.split("x"))))
        images = None
        if image is not None:
            images = track.cut(_read_image(Path(image))).expand(len(prompts), -1, -1, -1)
        condition = self._conditions_of(track).of_prompts(prompts, images)
        return condition.to(self.device)

    def _conditions_of(self, track: Any) -> Any:
        """The object that makes a track's conditions; for captions it accepts only the training's encoder weights."""
        conditions = track.conditions
        if self.image_statistics is not None:
            conditions = conditions.with_statistics(self.image_statistics)
        return conditions if self.made_text is None else conditions.made_by(self.made_text)

    def features(
        self, images: Tensor, t: float | Tensor | None = None, tap: str | None = None, noise: Tensor | None = None
    ) -> Tokens:
        """The tap's tokens [B,N,D] under the null condition: a class would leak the label.

        Args:
            images: [B,C,H,W] in [0,1], of the track's channels and size, or of one of its buckets'; a VAE encodes them
                where the track has one.
            t: a time of the run's objective, or one per image. None: half way, 500 of 1,000.
            tap: the tap's name. None: the tap that the run aligns, or the first of several.
            noise: standard normal, of the latents' shape. None: the same fixed noise for every image, so that an
                image's features do not depend on the other images.

        Raises UserError if the images, the time or the tap do not fit the run.
        """
        chosen = self._tap(tap)
        return self._denoise(images, t, (chosen,), noise).features[chosen].float()

    def aligned(
        self,
        images: Tensor,
        t: float | Tensor | None = None,
        tap: str | None = None,
        noise: Tensor | None = None,
        teacher: str = ALONE,
    ) -> Tokens:
        """The output of the tap's head for the same features: unit tokens in the teacher's space, on its grid. With
        several teachers, `teacher` names one of them."""
        tap = self._tap(tap)
        head = name_at(tap, teacher)
        if head not in self.model.heads:
            heads = ", ".join(self.model.heads)
            raise UserError(f"this run has no head on '{head}'; it has {heads if heads else 'none: loss=none'}")
        declared: Teacher = declaration_of(self.config["teacher"])
        denoised = self._denoise(images, t, (tap,), noise)
        grid = grid_for(declared.members()[teacher], images.shape[2:], self.track.image_size)
        with torch.no_grad():
            return self.model.heads[head](denoised.features[tap].float(), self._times(t, len(images)), grid)

    @torch.no_grad()
    def _denoise(
        self, images: Tensor, t: float | Tensor | None, taps: tuple[str, ...], noise: Tensor | None
    ) -> Denoised:
        tracks = [self.track_of(bucket) for bucket in self.buckets]
        check_images(images, [track.image_shape for track in tracks])
        (track,) = (track for track in tracks if tuple(images.shape[1:]) == tuple(track.image_shape))
        _ = self.autoencoder  # raises if its constants are not those of the run
        images = images.to(self.device, torch.float32)
        t_B = self._times(t, len(images))
        shape = track.latent_shape
        if noise is None:
            noise = random_draws.normal(shape, random_draws.generator(0, "features")).expand(len(images), *shape)
        elif noise.shape != (len(images), *shape):
            raise UserError(f"noise is {list(noise.shape)}; give {[len(images), *shape]}")
        x_t = self.objective.corrupt(track.to_x0(images), noise.to(self.device), t_B)
        null = self._conditions_of(track).null(len(images)).to(self.device)
        return self.model.backbone(x_t, t_B, null, taps, no_rows(self.device))

    def _tap(self, tap: str | None) -> str:
        """The given tap, or the first that the run aligns."""
        aligned = aligned_taps(self.config)
        if tap is None and not aligned:
            raise UserError("this run aligns no tap (loss=none): name the one to read, tap=NAME")
        return aligned[0] if tap is None else tap

    def _times(self, t: float | Tensor | None, count: int) -> Tensor:
        """The times [count], on the device."""
        time = self.objective.time_at(0.5) if t is None else t
        t_B = self.objective.times_of(time).to(self.device).expand(count)
        if not self.objective.has_time(t_B):
            raise UserError(f"t={t}: give {self.objective.times}")
        return t_B

    def load_ema(self, found: checkpoint.Checkpoint) -> None:
        """Replaces the trained weights by the checkpoint's EMA weights."""
        checkpoint.load_named(self._trained, found.tensors("ema"), str(found.folder))
        self.step = found.step


def _read_image(file: Path) -> np.ndarray:
    """An image file as uint8 [H,W,3]. Raises UserError if it cannot be read."""
    try:
        return read(file)
    except UNREADABLE as error:
        raise UserError(f"image={file} cannot be read ({error}); give another image") from error


def aligned_taps(config: dict[str, Any]) -> tuple[str, ...]:
    """The taps that a run aligns to a teacher, or those of its own states."""
    loss = declaration_of(config["loss"])
    return tuple(loss.taps) or own_states(loss).taps


def check_images(images: Tensor, shapes: Sequence[tuple[int, int, int]]) -> None:
    """Raises UserError unless the images are floats [B,C,H,W] in [0,1] of one of these shapes [C,H,W]."""
    if images.ndim != 4 or tuple(images.shape[1:]) not in shapes or not len(images):
        expected = " or ".join(f"[B,{','.join(map(str, shape))}]" for shape in shapes)
        raise UserError(f"images are {list(images.shape)}; this run's are {expected}: resize them first")
    if not images.is_floating_point() or images.min() < 0 or images.max() > 1:
        raise UserError(f"images are {images.dtype} in [{images.min()}, {images.max()}]; give floats in [0, 1]")


def open_base(run: Path, device: torch.device, places: dict[str, str] | None = None) -> OpenedRun:
    """The run's model as it was before its first step: base weights, LoRA without effect."""
    config = relocate(require_config(run), {} if places is None else places)
    loss, objective, track = build_loss(config), build_part(config["objective"]), build_part(config["data"])
    # heads need its width and grid; its weights are not read
    teacher = build_part(config["teacher"]) if loss.taps else None
    model, _ = build_model(config, track, teacher, loss)
    recorded = (read_summary(run) or {}).get("data") or {}
    made_latents = recorded.get("latents") or {}
    buckets = bucket_names(run, declaration_of(config["data"]).bucket_names)
    known: dict[str, Any] = {"made_latents": made_latents, "buckets": buckets, "made_text": recorded.get("text")}
    return OpenedRun(run, 0, config, model, objective, track, device, **known)


def load(run: str | Path, device: str | torch.device | None = None, places: dict[str, str] | None = None) -> OpenedRun:
    """A run's model under the EMA weights of its newest valid checkpoint.

    Args:
        run: its folder, `outputs/.../seed0`.
        device: None takes the GPU, if there is one.
        places: current paths, if the run was trained elsewhere; its keys are among `PLACES`.

    Raises UserError if the folder is not a run's, has no valid checkpoint, or its weights cannot be loaded.
    """
    run = Path(run)
    require_config(run)
    found = checkpoint.require(run)
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    opened = open_base(run, torch.device(device), places)
    opened.load_ema(found)
    return opened


def given_places(asked: dict[str, Any]) -> dict[str, str]:
    """The paths of `PLACES` that a command was given."""
    given = flatten({group: asked[group] for group in ("data", "backbone")})
    return {key: given[key] for key in PLACES if given.get(key) is not None}


def relocate(config: dict[str, Any], places: dict[str, str]) -> dict[str, Any]:
    """A run's config with other paths for some of its files. Raises UserError for a key without effect."""
    known = flatten(config)
    for key, place in places.items():
        if key not in PLACES:
            raise UserError(f"{key} is not a path of a run's files; give one of {', '.join(PLACES)}")
        if key not in known:
            raise UserError(f"{key} has no effect: this run has no such part; drop it")
        config = move_paths(config, str(known[key]), place) if key == "data.root" else replace_value(config, key, place)
    return config
