"""What a track declares of itself, and what it builds. See `urepa.core.protocols`, which has the kinds of parts beside
data."""

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
    """How the caches of a large track are made: `first` in one job, then `sharded` in several side by side."""

    place: tuple[str, str]  # the folder and its latents: tracks that have the same are parts of the largest of them
    tokens: str  # the store of tokens there and, of captions, that of their records
    images: float  # training images; inf: all there are
    first: tuple[str, ...]  # stages of `urepa.preprocess`, "manifest" before others
    sharded: tuple[str, ...]


class ConditionMaker(Protocol):
    """Makes the conditions of a track's samples. `urepa.data.class_conditions.ClassConditions` is that of classes.

    Shapes: B samples.
    """

    @property
    def dropout(self) -> Mapping[str, float]:
        """What training withholds from a sample, each with its probability (`urepa.core.conditions.draw_withheld`)."""
        ...

    def of_samples(self, samples: Sequence[Any], draw: Callable[[int], Any] | None = None) -> Condition:
        """The samples' conditions [B] (`urepa.data.lists.samples.Sample`), all given: training drops from them.

        Args:
            draw: the generator (`numpy.random.Generator`) of a training sample, by its place in `samples`, with which
                one of several conditions that it may have is drawn; None: its first one.
        """
        ...

    def of_classes(self, class_ids: Sequence[int]) -> Condition:
        """The conditions [B] under which images of these classes are made, without what training never gave."""
        ...

    def null(self, count: int) -> Condition:
        """Conditions [count] with every part withheld."""
        ...


class TrackCaches(Protocol):
    """The caches of a track: how they are made and opened, and how images become what is trained on, and back.

    Shapes: B batch, C channels, H and W rows and columns of x0, S side of an image in pixels.
    """

    name: str
    folder: Path  # of the caches
    num_classes: int
    conditions: ConditionMaker
    latent_shapes: Sequence[tuple[int, int, int]]  # C, H and W of x0, in each bucket that there may be
    image_shapes: Sequence[tuple[int, int, int]]  # channels, rows and columns in pixels, likewise
    latent_shape: tuple[int, int, int]  # the first of these, by which the backbone is built
    image_shape: tuple[int, int, int]  # likewise
    image_size: int  # S
    flip: bool  # whether mirrored training images are cached too
    online_latents: bool  # whether x0 is computed while training, by the autoencoder of its attribute `vae`
    online_teacher: bool  # whether the teacher is asked while training
    build_on_first_use: bool  # whether `open` makes what is missing
    prompt_bytes: int  # of a class's text embedding; 0: conditions are class ids

    @property
    def autoencoder(self) -> Any:
        """The network between images and x0; None where x0 is the image itself."""
        ...

    def open(self, teacher: Any | None) -> Any:
        """The caches (`urepa.data.cache.Cache`). A UserError where one is missing or made of other settings.

        Args:
            teacher: whose tokens are read (`TeacherNetwork`, or several); None: no tokens.
        """
        ...

    def has_caches(self, teacher: Any | None) -> bool:
        """Is everything cached that training reads?"""
        ...

    def stores(self, teacher: Any | None) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and type of each cache's records, by the cache's name: "latents", "tokens", with several teachers
        "tokens_NAME"."""
        ...

    def reads_squares(self, teacher: Any | None) -> bool:
        """Are images decoded in training?"""
        ...

    def expected_samples(self) -> dict[str, int]:
        """How many samples the splits have or will have: "train", "val" and, where there is one, "test"."""
        ...

    def source_changes(self) -> str | None:
        """In what the images are not those that the caches were made from; None where they are, or nobody can say."""
        ...

    def to_rgb(self, x0: Tensor) -> Tensor:
        """x0 [B,C,H,W] to images [B,3,S,S] in [0,1]."""
        ...

    def to_x0(self, images_BCSS: Tensor) -> Tensor:
        """Images in [0,1] to x0."""
        ...


class PromptConditions(ConditionMaker, Protocol):
    """What a `ConditionMaker` has beside where its conditions are texts."""

    def of_prompts(self, prompts: Sequence[str]) -> Condition:
        """The conditions [B] under which images of these texts are made, without what training never gave. The empty
        one is the null condition."""
        ...


class BucketTrackCaches(Protocol):
    """What `TrackCaches` has beside where its images may have several shapes."""

    buckets: Sequence[Any]  # those that have images, as far as that is known; each has a `name`

    def bucket_samples(self) -> Mapping[str, Mapping[str, int]] | None:
        """As `Track.bucket_samples`."""
        ...

    def teachers(self, teacher: Any | None) -> Mapping[str, Any]:
        """The built teachers by name (`TeacherNetwork`), each with its grid for images of the first bucket."""
        ...

    def of_bucket(self, name: str) -> Any:
        """The track as if one of its buckets were all of it."""
        ...


class ConditionedTrack(Protocol):
    """What a `Track`, and its caches, have beside where its conditions are not class ids alone."""

    @property
    def condition_widths(self) -> Mapping[str, int]:
        """The width of each part of its conditions, by name; 0 of ids."""
        ...


def condition_widths(track: Any) -> Mapping[str, int]:
    """The parts of the conditions of a track, declared or built, with their widths."""
    widths: Mapping[str, int] = getattr(track, "condition_widths", {CLASS: 0})
    return widths


class Track(Protocol):
    """A data set with its caches (urepa/data/tracks/). `urepa.data.track_defaults.TrackDefaults` has the answers that
    most give."""

    name: str  # in reports
    root: str  # the folder of its caches
    images: str  # where the images are: a run is found again by the last part of it
    source: Any  # how they are stored, of `urepa.data.sources`; None: otherwise
    num_classes: int
    class_names: str | None  # "imagenet", or a file with a name a line; None: the names lie with the caches, if any do
    cfg_dropout: float  # probability that a training sample loses its class
    vae: str | None  # the autoencoder between images and x0, a hub id or a folder; None: x0 is the image itself
    online_teacher: bool  # whether the teacher is asked while training
    online_latents: bool  # whether x0 is computed while training

    # Keys that change nothing in the caches.
    not_in_caches: ClassVar[tuple[str, ...]]
    # Keys that images sampled from a model depend on.
    of_images: ClassVar[tuple[str, ...]]
    # Values of keys with which opening it makes no cache, and copies none.
    without_making: ClassVar[Mapping[str, Any]]
    without_copies: ClassVar[Mapping[str, Any]]

    @property
    def latent_shapes(self) -> Sequence[Sequence[int]]:
        """Channels, rows and columns of x0, in each bucket that there may be."""
        ...

    @property
    def latent_shape(self) -> Sequence[int]:
        """The first of these, by which the backbone is built."""
        ...

    @property
    def bucket_names(self) -> Sequence[str]:
        """Of each of these, "48x80": rows and columns in pixels; one alone may be empty."""
        ...

    def bucket_samples(self) -> Mapping[str, Mapping[str, int]] | None:
        """How many samples of each split are in each bucket that has some, by its name; None where there is one bucket,
        or no list says it yet."""
        ...

    def teacher_grids(self, teacher: OneTeacher) -> Sequence[Sequence[int]]:
        """Rows and columns of a teacher's tokens, in each bucket that there may be. UserError where it takes no images
        of that shape."""
        ...

    def check(self) -> None:
        """UserError where its settings do not go together."""
        ...

    def check_given(self, given: Sequence[str], *, has_teacher: bool) -> None:
        """UserError for a key that has no effect.

        Args:
            given: dotted keys of the command line, `data.KEY` among them.
            has_teacher: whether the loss has one.
        """
        ...

    def check_validation(self, group: int) -> None:
        """UserError where its settings say that the validation set has fewer than `group` images."""
        ...

    def check_inputs(self, batch_size: int) -> None:
        """UserError where a run that begins lacks a list, a cache or an image, or would fill no batch, as far as files'
        names tell."""
        ...

    def check_makeable(self) -> None:
        """UserError where its caches are not there and cannot be made, as far as files' names tell."""
        ...

    def check_stage(self, stage: str, shard: str) -> None:
        """UserError where `urepa.preprocess` cannot do this stage, or this shard ("0/8") of it."""
        ...

    def has_latents(self) -> bool:
        """Are the lists and x0 cached?"""
        ...

    def has_tokens(self, teacher: OneTeacher) -> bool:
        """Are this teacher's tokens cached? Asked after `check_inputs`."""
        ...

    def expected_samples(self) -> dict[str, int] | None:
        """How many samples the splits will have, by settings and the source's files; None where lists that are there
        say it."""
        ...

    def count_classes(self) -> int:
        """The number of classes of caches or images that are there, whatever `num_classes` is. UserError where neither
        tells."""
        ...

    def hub_files(self) -> dict[str, list[str]]:
        """What `prefetch` fetches beside the images: patterns of files by the name of a repository on the hub."""
        ...

    def stages(self) -> Stages | None:
        """How the caches are made side by side; None: in one go."""
        ...

    def make_caches(self, teacher: Any, stage: str, shard: tuple[int, int], batch_size: int) -> None:
        """What `urepa.preprocess` does.

        Args:
            teacher: the built one (`TeacherNetwork`).
            stage: "all", or one of `urepa.config.command_schemas.Stage`.
            shard: the number of this process's part, from 0, and how many parts there are.
            batch_size: images that a network sees at once.
        """
        ...

    def build(self) -> Any:
        """Its caches (`TrackCaches`)."""
        ...

    def description(self, images: str) -> str:
        """Images, classes and x0 as `describe` writes them.

        Args:
            images: how many are in which split, as "100 training images and 20 validation images".
        """
        ...
