"""Defaults shared by most tracks: a base class of their declarations (`urepa.core.track_protocols.Track`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from urepa.core.descriptions import number
from urepa.core.errors import UserError
from urepa.core.protocols import OneTeacher
from urepa.core.track_protocols import Stages

# what `describe` writes for a track whose images have several shapes
ONE_BUCKET_A_BATCH = (
    "Each global batch comes from one bucket. In every epoch each bucket has one permutation, the order of the "
    "buckets' batches is random, and samples that do not fill a batch of their bucket are left out."
)


class TrackDefaults:
    """A track with class ids without names, no files on the hub and no networks that run during training; its caches
    exist already or are made without separate stages."""

    latent_shape: Any
    source: Any = None
    vae: Any = None
    class_names: Any = None
    online_teacher: Any = False
    online_latents: Any = False
    online_text: Any = False

    not_in_caches: ClassVar[tuple[str, ...]] = ("cfg_dropout",)
    of_images: ClassVar[tuple[str, ...]] = ("num_classes",)
    without_making: ClassVar[Mapping[str, Any]] = {}
    without_copies: ClassVar[Mapping[str, Any]] = {}

    @property
    def latent_shapes(self) -> Sequence[Sequence[int]]:
        """The one shape of all samples."""
        return [self.latent_shape]

    @property
    def bucket_names(self) -> Sequence[str]:
        """One bucket, without a name."""
        return [""]

    def bucket_samples(self) -> Mapping[str, Mapping[str, int]] | None:
        return None

    def teacher_grids(self, teacher: OneTeacher) -> Sequence[Sequence[int]]:
        """The teacher's grid for square images."""
        return [teacher.grid]

    def check(self) -> None:
        """No check by default: the sizes always fit."""

    def check_given(self, given: Sequence[str], *, has_teacher: bool) -> None:
        """No check by default: every key has an effect."""

    def check_validation(self, group: int) -> None:
        """No check by default: the number of validation images is unknown before they are read."""

    def check_inputs(self, batch_size: int) -> None:
        """No check by default: opening the caches reports what is missing."""

    def check_makeable(self) -> None:
        """No check by default: making the caches reports what is missing."""

    def check_stage(self, stage: str, shard: str) -> None:
        """No check by default: every stage is allowed."""

    def has_latents(self) -> bool:
        return False

    def has_tokens(self, teacher: OneTeacher) -> bool:
        return False

    def expected_samples(self) -> dict[str, int] | None:
        return None

    def hub_files(self) -> dict[str, list[str]]:
        return {}

    def stages(self) -> Stages | None:
        return None


def refuse_idle_teacher(online_teacher: bool, has_teacher: bool) -> None:
    """Raises UserError if `data.online_teacher` is set and the loss has no teacher."""
    if online_teacher and not has_teacher:
        raise UserError("data.online_teacher has no effect with loss=none, which has no teacher; drop it")


def draws_text(cfg_dropout: float, flip: bool, condition: str = "class") -> str:
    """What is drawn at random for a sample at each update, as `describe` writes it."""
    flipped = " Training images are mirrored with probability 0.5, for backbone and teacher alike." if flip else ""
    return f"A training sample loses its {condition} with probability {number(cfg_dropout)}.{flipped}"
