"""What most tracks answer alike: for declarations of tracks (`urepa.core.track_protocols.Track`) to inherit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from urepa.core.descriptions import number
from urepa.core.errors import UserError
from urepa.core.protocols import OneTeacher
from urepa.core.track_protocols import Stages

# of a track whose images have several shapes, as `describe` writes it
ONE_BUCKET_A_BATCH = (
    "A global batch is of one bucket: in every epoch each has one permutation, the order of the buckets' batches is "
    "drawn, and what does not fill a batch of its bucket is left out."
)


class TrackDefaults:
    """A track whose caches the user has, or makes in one go: of class ids without names, with nothing on the hub and
    no network that is asked in training."""

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
        """One, of all samples."""
        return [self.latent_shape]

    @property
    def bucket_names(self) -> Sequence[str]:
        """One without a name."""
        return [""]

    def bucket_samples(self) -> Mapping[str, Mapping[str, int]] | None:
        return None

    def teacher_grids(self, teacher: OneTeacher) -> Sequence[Sequence[int]]:
        """That of square images."""
        return [teacher.grid]

    def check(self) -> None:
        """Its sizes go together."""

    def check_given(self, given: Sequence[str], *, has_teacher: bool) -> None:
        """Every key has an effect."""

    def check_validation(self, group: int) -> None:
        """How many images will validate is not known before they are read."""

    def check_inputs(self, batch_size: int) -> None:
        """What is missing is said when it is opened."""

    def check_makeable(self) -> None:
        """What is missing is said when its caches are made."""

    def check_stage(self, stage: str, shard: str) -> None:
        """Any stage will do."""

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
    """UserError where a teacher is to be asked in training and the loss has none."""
    if online_teacher and not has_teacher:
        raise UserError("data.online_teacher has no effect with loss=none, which has no teacher; drop it")


def tell_draws(cfg_dropout: float, flip: bool, condition: str = "class") -> str:
    """What is drawn anew of a sample at each update, as `describe` writes it."""
    flipped = " Training images are mirrored with probability 0.5, for backbone and teacher alike." if flip else ""
    return f"A training sample loses its {condition} with probability {number(cfg_dropout)}.{flipped}"
