"""Protocols of tracks and of what they build. See `urepa.core.protocols` for the parts besides data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from urepa.core.part_names import CLASS

if TYPE_CHECKING:
    from torch import Tensor

    from urepa.core.conditions import Condition
    from urepa.core.protocols import OneTeacher


@dataclass(frozen=True)
class Stages:
    """The stages that make the caches of a large track: `first` in one job, then `sharded` in several parallel ones."""

    place: tuple[str, str]  # the folder and its latents; tracks with the same place are parts of the largest one
    tokens: str  # the store of tokens in the folder and, of captions, that of their records
    images: float  # number of training images; inf: all
    first: tuple[str, ...]  # stages of `urepa.preprocess`, with "manifest" first
    sharded: tuple[str, ...]


class ConditionMaker(Protocol):
    """Makes the conditions of a track's samples. `urepa.data.class_conditions.ClassConditions` is that for classes.

    Shapes: B samples.
    """

    @property
    def dropout(self) -> Mapping[str, float]:
        """What training withholds from a sample, with the probabilities (`urepa.core.conditions.draw_withheld`)."""
        ...

    def of_samples(
        self,
        samples: Sequence[Any],
        draw: Callable[[str, int], Any] | None = None,
        x0: Tensor | None = None,
    ) -> Condition:
        """The samples' conditions [B] (`urepa.data.lists.samples.Sample`), with all parts given; training drops parts.

        Args:
            draw: returns the generator (`numpy.random.Generator`), for a purpose, of the training sample with this
                index in `samples`. It chooses one of several possible conditions. None: the choice depends on the
                sample alone, such as the first caption.
            x0: the samples' x0 [B,C,H,W], for conditions that are computed from it.
        """
        ...

    def of_classes(self, class_ids: Sequence[int]) -> Condition:
        """The conditions [B] for generating images of these classes, without parts that training always withheld."""
        ...

    def null(self, count: int) -> Condition:
        """Conditions [count] with every part withheld."""
        ...


class TrackCaches(Protocol):
    """The caches of a track: making and opening them, and the maps between images and x0.

    Shapes: B batch, C channels, H and W rows and columns of x0, S side of an image in pixels.
    """

    name: str
    folder: Path  # the folder of the caches
    num_classes: int
    conditions: ConditionMaker
    latent_shapes: Sequence[tuple[int, int, int]]  # C, H and W of x0, in each possible bucket
    image_shapes: Sequence[tuple[int, int, int]]  # channels, rows and columns in pixels, in each possible bucket
    latent_shape: tuple[int, int, int]  # the first of these, with which the backbone is built
    image_shape: tuple[int, int, int]  # the first of these
    image_size: int  # S
    flip: bool  # whether mirrored training images are cached too
    online_latents: bool  # whether x0 is computed during training, by the autoencoder in its attribute `vae`
    online_teacher: bool  # whether the teacher is run during training
    build_on_first_use: bool  # whether `open` makes missing caches
    prompt_bytes: int  # bytes of a class's text embedding; 0: conditions are class ids

    @property
    def autoencoder(self) -> Any:
        """The network between images and x0; None if x0 is the image itself."""
        ...

    def open(self, teacher: Any | None) -> Any:
        """The caches (`urepa.data.cache.Cache`). Raises UserError if one is missing or was made with other settings.

        Args:
            teacher: the teacher whose tokens are read (`TeacherNetwork`, or several); None: no tokens.
        """
        ...

    def has_caches(self, teacher: Any | None) -> bool:
        """Whether all caches for training exist."""
        ...

    def stores(self, teacher: Any | None) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and type of each cache's records, by the cache's name: "latents", "tokens", and with several teachers
        "tokens_NAME"."""
        ...

    def reads_squares(self, teacher: Any | None) -> bool:
        """Whether images are decoded during training."""
        ...

    def expected_samples(self) -> dict[str, int]:
        """The expected number of samples per split: "train", "val" and, if there is one, "test"."""
        ...

    def source_changes(self) -> str | None:
        """How the images differ from those from which the caches were made; None if they do not or it is unknown."""
        ...

    def cut(self, pixels_HW3: Any) -> Tensor:
        """Cuts an image (uint8, RGB) as the track cuts its own, to the size of the first bucket: [C,H,W] in [0,1]."""
        ...

    def to_rgb(self, x0: Tensor) -> Tensor:
        """Maps x0 [B,C,H,W] to images [B,3,S,S] in [0,1]."""
        ...

    def to_x0(self, images_BCSS: Tensor) -> Tensor:
        """Maps images in [0,1] to x0."""
        ...


class PromptConditions(ConditionMaker, Protocol):
    """Additional members of a `ConditionMaker` whose conditions are texts."""

    def of_prompts(self, prompts: Sequence[str]) -> Condition:
        """The conditions [B] for generating images of these texts, without parts that training always withheld. The
        empty text gives the null condition."""
        ...

    def example(self, count: int) -> Condition:
        """Conditions [count] of the right shapes for counting costs; no text encoder is asked."""
        ...


class CaptionedTrackCaches(Protocol):
    """Additional members of `TrackCaches` whose samples have captions."""

    settings: Any  # the declaration, whose `text_encoder` is a `urepa.core.text_protocols.TextEncoder`
    online_text: bool  # whether captions are encoded during training

    def caption_records(self) -> tuple[int, int] | None:
        """The number of records of captions, before or after they are made, and the bytes of one; None: no records."""
        ...


class BucketTrackCaches(Protocol):
    """Additional members of `TrackCaches` whose images may have several shapes."""

    buckets: Sequence[Any]  # the buckets that have images, as far as known; each has a `name`

    def bucket_samples(self) -> Mapping[str, Mapping[str, int]] | None:
        """The same as `Track.bucket_samples`."""
        ...

    def teachers(self, teacher: Any | None) -> Mapping[str, Any]:
        """The built teachers by name (`TeacherNetwork`), each with its grid for images of the first bucket."""
        ...

    def of_bucket(self, name: str) -> Any:
        """The track restricted to one of its buckets."""
        ...


class ConditionedTrack(Protocol):
    """Additional members of a `Track`, and of its caches, whose conditions are not only class ids."""

    @property
    def condition_widths(self) -> Mapping[str, int]:
        """The width of each part of its conditions, by name; 0 for ids."""
        ...


def condition_widths(track: Any) -> Mapping[str, int]:
    """The parts of the conditions of a track, declared or built, with their widths."""
    widths: Mapping[str, int] = getattr(track, "condition_widths", {CLASS: 0})
    return widths


class Track(Protocol):
    """The declaration of a data set with its caches (urepa/data/tracks/). `urepa.data.track_defaults.TrackDefaults` has
    defaults for most methods."""

    name: str  # the name in reports
    root: str  # the folder of its caches
    images: str  # the path of the images; its last component is part of a run's name
    source: Any  # how they are stored (`urepa.data.sources`); None: in another way
    num_classes: int
    class_names: str | None  # "imagenet", or a file with one name per line; None: stored with the caches, if at all
    cfg_dropout: float  # probability of dropping a training sample's class
    vae: str | None  # the autoencoder between images and x0, a hub id or a folder; None: x0 is the image
    online_teacher: bool  # whether the teacher is run during training
    online_latents: bool  # whether x0 is computed during training

    # Keys that do not affect the caches.
    not_in_caches: ClassVar[tuple[str, ...]]
    # Keys on which images sampled from a model depend.
    of_images: ClassVar[tuple[str, ...]]
    # Values of keys with which opening the track neither makes nor copies a cache.
    without_making: ClassVar[Mapping[str, Any]]
    without_copies: ClassVar[Mapping[str, Any]]

    @property
    def latent_shapes(self) -> Sequence[Sequence[int]]:
        """Channels, rows and columns of x0, in each possible bucket."""
        ...

    @property
    def latent_shape(self) -> Sequence[int]:
        """The first of these, with which the backbone is built."""
        ...

    @property
    def bucket_names(self) -> Sequence[str]:
        """The names of these buckets, "48x80": rows and columns in pixels; a single bucket may have an empty name."""
        ...

    def bucket_samples(self) -> Mapping[str, Mapping[str, int]] | None:
        """The number of samples per split in each bucket that has any, by its name; None if there is one bucket, or if
        no list exists yet."""
        ...

    def teacher_grids(self, teacher: OneTeacher) -> Sequence[Sequence[int]]:
        """Rows and columns of a teacher's tokens, in each possible bucket. Raises UserError if it does not take images
        of that shape."""
        ...

    def check(self) -> None:
        """Raises UserError if its settings do not fit together."""
        ...

    def check_given(self, given: Sequence[str], *, has_teacher: bool) -> None:
        """Raises UserError for a key that has no effect.

        Args:
            given: dotted keys of the command line, including `data.KEY`.
            has_teacher: whether the loss has a teacher.
        """
        ...

    def check_validation(self, group: int) -> None:
        """Raises UserError if its settings give the validation set fewer than `group` images."""
        ...

    def check_inputs(self, batch_size: int) -> None:
        """Raises UserError if a new run lacks a list, a cache or an image, or has too few images for a batch, as far as
        file names show."""
        ...

    def check_makeable(self) -> None:
        """Raises UserError if its caches do not exist and cannot be made, as far as file names show."""
        ...

    def check_stage(self, stage: str, shard: str) -> None:
        """Raises UserError if `urepa.preprocess` cannot do this stage, or this shard ("0/8") of it."""
        ...

    def has_latents(self) -> bool:
        """Whether the lists and x0 are cached."""
        ...

    def has_tokens(self, teacher: OneTeacher) -> bool:
        """Whether this teacher's tokens are cached. Called after `check_inputs`."""
        ...

    def expected_samples(self) -> dict[str, int] | None:
        """The expected number of samples per split, from settings and the source's files; None if existing lists give
        it."""
        ...

    def count_classes(self) -> int:
        """The number of classes of existing caches or images, independent of `num_classes`. Raises UserError if neither
        exist."""
        ...

    def hub_files(self) -> dict[str, list[str]]:
        """The files for `prefetch` besides the images: patterns by the name of a hub repository with its revision."""
        ...

    def stages(self) -> Stages | None:
        """The stages in which the caches are made in parallel; None: in a single stage."""
        ...

    def make_caches(self, teacher: Any, stage: str, shard: tuple[int, int], batch_size: int) -> None:
        """Makes the caches, as `urepa.preprocess` does.

        Args:
            teacher: the built teacher (`TeacherNetwork`).
            stage: "all", or one of `urepa.config.command_schemas.Stage`.
            shard: the index of this process's part, from 0, and the number of parts.
            batch_size: images per batch of a network.
        """
        ...

    def build(self) -> Any:
        """Its caches (`TrackCaches`)."""
        ...

    def description(self, images: str) -> str:
        """Images, classes and x0 for `describe`.

        Args:
            images: the number of images per split, such as "100 training images and 20 validation images".
        """
        ...
