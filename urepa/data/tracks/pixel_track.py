"""A track of small images: x0 is the image itself, pixel-unshuffled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from urepa.core.comparability import NOTHING
from urepa.core.declared_keys import COUNT, LARGEST, SIZE, TINY, part, setting
from urepa.core.descriptions import join_with_and, number, shape
from urepa.core.errors import UserError
from urepa.core.files import check_folder_target, read_json
from urepa.core.protocols import OneTeacher
from urepa.data.lists.bucket_shapes import BUCKETS, bucket_sizes, check_bucket_list
from urepa.data.lists.classes import count_classes, pixel_folder
from urepa.data.lists.paths import is_finished, no_cache_error, remake_pixels_text, tokens_name
from urepa.data.lists.split_sizes import (
    DIGITS,
    check_batch_size,
    check_buckets,
    check_shares,
    expected_samples,
    refuse_other_classes,
)
from urepa.data.sources.image_folder import class_places, readable
from urepa.data.sources.source_files import PHOTOGRAPHS, Source, check_images, count_source_images
from urepa.data.track_captions import CaptionSettings, CaptionSource, ConditionOf
from urepa.data.track_defaults import ONE_BUCKET_A_BATCH, TrackDefaults, refuse_idle_teacher
from urepa.data.track_image_tokens import PatchStatistics
from urepa.data.tracks.pixel_sizes import check_channels, check_pixels, unshuffled_shape
from urepa.models.teachers.rectangle_sizes import Grid, grid_for

if TYPE_CHECKING:
    from urepa.data.tracks.pixel_caches import PixelTrackCaches


@dataclass
class PixelTrack(CaptionSettings, TrackDefaults):
    """Small images without a VAE, whose caches are made in one process without stages."""

    _target_: str = "urepa.data.tracks.pixel_track.PixelTrack"
    name: str = setting("the track's name", alters=NOTHING)
    root: str = setting("the folder below which the caches are made")
    source: Source = setting("how the images are stored")
    images: str = setting("the images: a folder, or the name of a repository for source=hub")
    limit: int | None = setting(
        "training images, class-balanced; null: all", ge=1, le=COUNT, alters=NOTHING, unpairs=True
    )
    validation_images: int = setting("number of validation images", ge=1, le=COUNT)
    test_images: int = setting("number of test images", ge=1, le=COUNT)
    channels: int = setting("1 for grey images, 3 for colour", ge=1, le=SIZE)
    image_size: int = setting(
        "side of the squares, pixels; with buckets, of the square for which `teacher.grid` is given", ge=1, le=SIZE
    )
    unshuffle: int = setting("x0 has channels·unshuffle² channels at image_size / unshuffle", ge=1, le=SIZE)
    scale: float = setting(
        "scale of x0, chosen for a variance of about 1, like a VAE's scaling factor", ge=TINY, le=LARGEST
    )
    num_classes: int = setting("number of classes; data=folder counts the class folders by default", ge=1, le=SIZE)
    cfg_dropout: float = setting(
        "probability that a training sample loses its class, its caption or its image", ge=0, le=1, alters=NOTHING
    )
    build_on_first_use: bool = setting("make missing caches when a run needs them")
    flip: bool = setting(
        "train on mirror images with probability 0.5; the caches then hold both", False, alters=NOTHING, unpairs=True
    )
    online_teacher: bool = setting("run the teacher in training instead of reading its cache", False, alters=NOTHING)
    online_text: bool = setting("encode captions during training, without a cache of records", False, alters=NOTHING)
    buckets: Any = setting(
        "shapes that images are cut to, as [[48,80],[64,64]]: rows and columns in pixels; auto: a square, and a "
        "landscape and a portrait rectangle of nearly as many pixels; null: only squares",
        None,
        unpairs=True,
    )
    condition: ConditionOf = setting(
        "the condition of a sample. label: its class, or with `data.captions` its caption; image: its own x0, for a "
        "backbone that encodes it",
        ConditionOf.label,
    )
    captions: CaptionSource | None = setting(
        "source of captions as conditions. files: stored with the images, in files beside them or in a column of the "
        "source; classes: `a photo of a NAME`, from the names of class folders; null: conditions are class ids",
        None,
    )
    caption_column: str | None = setting(
        "the column of the captions, or the key in a .json of a tar file; null: text, caption or captions", None
    )
    text_encoder: Any = part("encodes the captions: text_encoder@data.text_encoder=NAME; null: without captions", None)
    max_skipped: float = setting(
        "largest fraction of images that may be unreadable; 0: none", 0.0, ge=0, le=1, alters=NOTHING, unpairs=True
    )
    image_encoder: Any = part(
        "encodes the images as conditions besides their captions: teacher@data.image_encoder=NAME; null: without", None
    )
    dropout: dict[str, float] = setting(
        "with data.image_encoder, in place of cfg_dropout: the parts of its condition that a training sample loses "
        "together, with the probability, as {text+image: 0.1, image: 0.3, text: 0.05}",
        {},
        ge=0,
        le=1,
        alters=NOTHING,
    )
    patch_statistics: PatchStatistics = setting(
        "the mean and deviation by which the image encoder's patch tokens are standardised: that of its vectors (cls) "
        "or their own (patches)",
        PatchStatistics.cls,
        alters=NOTHING,
    )
    shuffle_patches: bool = setting(
        "a control: the patch tokens of the condition's image are in a random order", False, alters=NOTHING
    )

    not_in_caches: ClassVar[tuple[str, ...]] = (
        "cfg_dropout",
        "dropout",
        "patch_statistics",
        "shuffle_patches",
        "condition",
        "build_on_first_use",
    )
    of_images: ClassVar[tuple[str, ...]] = ("image_size", "channels", "unshuffle", "scale", "num_classes")
    without_making: ClassVar[Mapping[str, Any]] = {"build_on_first_use": False}

    @property
    def sizes(self) -> dict[str, tuple[int, int]]:
        """Rows and columns in pixels of each bucket's images, by name; without buckets one size with an empty name."""
        return bucket_sizes(self.buckets, self.image_size)

    def shape_of(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """The shape of x0 for images of this size in pixels."""
        return unshuffled_shape(self.channels, size, self.unshuffle)

    @property
    def latent_shapes(self) -> list[tuple[int, int, int]]:
        return [self.shape_of(size) for size in self.sizes.values()]

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.latent_shapes[0]

    @property
    def bucket_names(self) -> list[str]:
        return list(self.sizes)

    def bucket_samples(self) -> dict[str, dict[str, int]] | None:
        file = self.folder / BUCKETS
        if len(self.sizes) == 1 or not file.is_file():
            return None
        known: dict[str, dict[str, int]] = read_json(file)
        return {name: known[name] for name in self.sizes if name in known}

    def teacher_grids(self, teacher: OneTeacher) -> list[Grid]:
        return [grid_for(teacher, size, self.image_size) for size in self.sizes.values()]

    @property
    def folder(self) -> Path:
        """The folder of the caches."""
        held_out = (self.validation_images, self.test_images)
        sizes = [str(self.image_size)] if self.buckets is None else list(self.sizes)
        return pixel_folder(self.root, str(self.source), self.images, self.limit, *held_out, self.channels, sizes)

    @property
    def held_out(self) -> dict[str, int]:
        """The requested numbers of validation and test images."""
        return {"val": self.validation_images, "test": self.test_images}

    def check(self) -> None:
        self.check_captions()
        if self.buckets is None:
            check_pixels(str(self.source), self.image_size, self.unshuffle, self.flip)
            return
        check_bucket_list(self.buckets, self.image_size, self.unshuffle, "data.unshuffle")
        if str(self.source) not in PHOTOGRAPHS:
            raise UserError(
                f"data.buckets needs data.source={' or '.join(PHOTOGRAPHS)}; data.source={self.source} has images of "
                "one shape, so drop it"
            )

    def check_given(self, given: Sequence[str], *, has_teacher: bool) -> None:
        refuse_idle_teacher(self.online_teacher, has_teacher)
        self.check_image_given(given)

    def check_validation(self, group: int) -> None:
        images = self.validation_images
        if group > images:
            raise UserError(
                f"trainer.validation_group={group} is more than data.validation_images={images}; give "
                f"trainer.validation_group={images} or fewer"
            )

    def check_inputs(self, batch_size: int) -> None:
        self.check_text_files()
        if not self.has_latents():
            if not self.build_on_first_use:
                raise no_cache_error(self.folder / "latents", remake_pixels_text(self.name))
            self._check_images()
        if self.limit is not None or self.source == "digits":  # the number of images follows from the settings
            check_batch_size(batch_size, self.expected_samples()["train"])
        if (known := self.bucket_samples()) is not None:
            check_buckets({name: counts["train"] for name, counts in known.items()}, batch_size)

    def check_makeable(self) -> None:
        if self.text_encoder is not None:
            self.text_encoder.check_files()
        if not self.has_latents():
            self._check_images()

    def _check_images(self) -> None:
        """Raises UserError if the caches cannot be written, or if the images have other classes or channels or are too
        few. Without opening images this is checked for a folder's classes and, for the digits, completely."""
        if not Path(self.root).is_dir():
            check_folder_target("data.root", Path(self.root))
        check_images(str(self.source), self.images, by_class=self.by_class)
        if self.source == "folder":
            classes = class_places(Path(self.images), readable())[0]
            refuse_other_classes(set(range(len(classes))), self.num_classes)
        if self.source == "digits":
            refuse_other_classes(set(range(len(DIGITS))), self.num_classes)
            check_shares([(number, 0) for number in DIGITS], self.held_out, self.limit)
            check_channels(self.channels, 1)

    def check_stage(self, stage: str, shard: str) -> None:
        if stage not in ("all", "verify", "digest") or shard != "0/1":
            raise UserError(f"data={self.name} is built without stages: leave out stage and shard")
        self.check_makeable()

    def has_latents(self) -> bool:
        there = self._bucket_folders()
        return bool(there) and all(is_finished(folder / "latents") for folder in there.values())

    def has_tokens(self, teacher: OneTeacher) -> bool:
        known, grids = teacher.stored_as(), dict(zip(self.sizes, self.teacher_grids(teacher), strict=True))
        names = {
            bucket: tokens_name(known["model"], known["image_size"], grid, known.get("positions"))
            for bucket, grid in grids.items()
        }
        return all(is_finished(folder / names[bucket]) for bucket, folder in self._bucket_folders().items())

    def _bucket_folders(self) -> dict[str, Path]:
        """The folder of each bucket with images, by its name; {} while it is unknown which buckets have images."""
        if len(self.sizes) == 1:
            return {name: self.folder / name for name in self.sizes}
        return {name: self.folder / name for name in self.bucket_samples() or {}}

    def hub_files(self) -> dict[str, list[str]]:
        return {} if self.image_encoder is None else self.image_encoder.hub_files()

    def expected_samples(self) -> dict[str, int]:
        count = partial(count_source_images, str(self.source), self.images)
        return expected_samples(self.limit, self.held_out, count)

    def count_classes(self) -> int:
        if self.buckets is not None:  # the folder's name contains the buckets
            check_bucket_list(self.buckets, self.image_size, self.unshuffle, "data.unshuffle")
        return count_classes(str(self.source), self.images, self.folder)

    def make_caches(self, teacher: Any, stage: str, shard: tuple[int, int], batch_size: int) -> None:
        self.build().make(teacher, stage)

    def build(self) -> PixelTrackCaches:
        from urepa.data.tracks.pixel_caches import PixelTrackCaches

        return PixelTrackCaches(self)

    def description(self, images: str) -> str:
        size, f = self.image_size, self.unshuffle
        cut = "is" if f == 1 else f"is pixel-unshuffled by {f} to"
        if self.buckets is not None:
            return f"{self._describe_buckets(images, cut)} {self.describe_draws()}"
        return (
            f"{self.name} (source {self.source}): {images}, in {number(self.num_classes)} classes, each split "
            f"class-balanced. The central square at {size}×{size} pixels with {self.channels} channel(s) {cut} "
            f"x0 of {shape(self.latent_shape)} in [−{number(self.scale)}, {number(self.scale)}]. "
            f"{self.describe_draws()}"
        )

    def _describe_buckets(self, images: str, cut: str) -> str:
        """The sentences of `description` on images of several shapes, or of one shape given by its sides."""
        whole = (
            f"{self.name} (source {self.source}): {images}, in {number(self.num_classes)} classes, each split "
            f"class-balanced. The largest central rectangle of each image with {{aspect}} is resized once, for "
            f"backbone and teacher alike; with {self.channels} channel(s) it {cut} x0 in [−{number(self.scale)}, "
            f"{number(self.scale)}]"
        )
        named = [shape(size) for size in self.sizes.values()]
        if len(named) == 1:
            return f"{whole.format(aspect=f'the aspect ratio of {named[0]} pixels')}, of {shape(self.latent_shape)}."
        return (
            f"{whole.format(aspect='the nearest aspect ratio')}. There are buckets of {join_with_and(named)} pixels. "
            f"{ONE_BUCKET_A_BATCH}"
        )
