"""A track of VAE latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from urepa.core.comparability import ALIGNMENT, NOTHING
from urepa.core.declared_keys import COUNT, SIZE, part, setting
from urepa.core.errors import UserError
from urepa.core.files import read_json
from urepa.core.hub_names import is_hub_id
from urepa.core.protocols import OneTeacher
from urepa.core.track_protocols import Stages
from urepa.data.latent_track_stages import check_latent_stage
from urepa.data.latent_track_words import describe_latents
from urepa.data.lists.bucket_shapes import BUCKETS, Size, bucket_sizes, check_bucket_list
from urepa.data.lists.classes import FILE as CLASSES
from urepa.data.lists.classes import count_source_classes
from urepa.data.lists.paths import (
    no_cache_error,
    remake_latents_text,
)
from urepa.data.lists.split_sizes import check_buckets, expected_latent_samples
from urepa.data.sources.source_files import PHOTOGRAPHS, Source, count_source_images
from urepa.data.track_captions import CaptionSettings, CaptionSource, ConditionOf
from urepa.data.track_defaults import TrackDefaults, refuse_idle_teacher
from urepa.data.track_image_tokens import PatchStatistics
from urepa.data.track_teacher_view import TeacherSees, TeacherViewSettings
from urepa.models.teachers.rectangle_sizes import Grid, grid_for

if TYPE_CHECKING:
    from urepa.data.tracks.latent_caches import LatentTrackCaches

VAE_FILES = [  # in a pipeline, or a VAE alone
    "vae/config.json",
    "vae/*.safetensors",
    "config.json",
    "diffusion_pytorch_model.safetensors",
]
TAE_FILES = ["config.json", "diffusion_pytorch_model.safetensors"]
TEXT_FILES = ["tokenizer/*", "text_encoder/config.json", "text_encoder/model.safetensors"]


class TokenDtype(Enum):
    float16 = "float16"
    int8 = "int8"  # in groups of 128 values; half the size on disk


@dataclass
class LatentTrack(CaptionSettings, TeacherViewSettings, TrackDefaults):
    """Latents of a VAE and a teacher's tokens, made in stages by several processes."""

    _target_: str = "urepa.data.tracks.latent_track.LatentTrack"
    name: str = setting("the track's name", alters=NOTHING)
    root: str = setting("the folder of the lists and caches")
    source: Source = setting("how the images are stored")
    images: str = setting("the images: a folder, or the name of a repository for source=hub")
    train_images: int | None = setting(
        "training images, class-balanced; null: all", ge=1, le=COUNT, alters=NOTHING, unpairs=True
    )
    val_images: int | None = setting("validation images, class-balanced; null: all", ge=1, le=COUNT)
    image_size: int = setting(
        "side of the squares, pixels; with buckets, of the square that `latent_shape` and `teacher.grid` are given for",
        ge=1,
        le=SIZE,
    )
    vae: str = setting("a hub id or a local diffusers folder")
    text: str | None = setting(
        "a hub id or a local diffusers folder with the text encoder of the classes' prompts; null: the backbone takes "
        "class ids or captions"
    )
    class_names: str | None = setting(
        '"imagenet", or a file with one name per line; null: none, as only prompts and image grids need names'
    )
    moments: bool = setting(
        "store the posterior's mean and standard deviation, to sample latents in training", alters=NOTHING, unpairs=True
    )
    token_dtype: TokenDtype = setting(
        "data type of stored tokens; int8: in groups of 128 with a scale each, half the size on disk", alters=ALIGNMENT
    )
    max_skipped: float = setting(
        "largest fraction of images that may be unreadable (above 0: at least one image); all of them are listed",
        ge=0,
        le=1,
        alters=NOTHING,
        unpairs=True,
    )
    latents: str = setting("the folder of latents")
    tokens: str = setting("the folder of the teacher's tokens", alters=NOTHING)
    train: str = setting("CSV of sample_id,class_id,path,split for training", alters=NOTHING, unpairs=True)
    val: str = setting("CSV of sample_id,class_id,path,split for validation")
    prompts: str = setting("the .pt file of the prompts' embeddings")
    latent_shape: list[int] = setting("channels, rows and columns of a latent", ge=1, le=SIZE)
    num_classes: int = setting("number of classes", ge=1, le=SIZE)
    cfg_dropout: float = setting(
        "probability that a training sample loses its class, its caption or its image", ge=0, le=1, alters=NOTHING
    )
    flip: bool = setting(
        "train on mirror images with probability 0.5; the caches then hold both", False, alters=NOTHING, unpairs=True
    )
    online_teacher: bool = setting(
        "run the teacher on the images during training, without a cache of tokens", False, alters=NOTHING
    )
    online_latents: bool = setting(
        "encode the images during training, without a cache of latents", False, alters=NOTHING
    )
    online_text: bool = setting("encode captions during training, without a cache of records", False, alters=NOTHING)
    stage_to: str | None = setting("a node-local folder to copy the caches to before training; null: none", None)
    teacher_sees: TeacherSees = setting(
        "what the teacher sees: the images, or their latents decoded by the VAE (decoded) or by the Tiny AutoEncoder "
        "`data.tae` (tae_decoded)",
        TeacherSees.images,
        alters=ALIGNMENT,
    )
    tae: str | None = setting(
        "a hub id or a local folder of diffusers' AutoencoderTiny, for data.teacher_sees=tae_decoded",
        None,
        alters=ALIGNMENT,
    )
    buckets: Any = setting(
        "shapes that images are cut to, as [[896,1152],[1024,1024]]: rows and columns in pixels; auto: a square, and a "
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
        "source; classes: `a photo of a NAME`, from the class names; null: conditions are class ids",
        None,
    )
    caption_column: str | None = setting(
        "the column of the captions, or the key in a .json of a tar file; null: text, caption or captions", None
    )
    text_encoder: Any = part("encodes the captions: text_encoder@data.text_encoder=NAME; null: without captions", None)
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
        "stage_to",
    )
    of_images: ClassVar[tuple[str, ...]] = ("latent_shape", "image_size", "num_classes")
    without_copies: ClassVar[Mapping[str, Any]] = {"stage_to": None}

    @property
    def folder(self) -> Path:
        """The track's folder."""
        return Path(self.root)

    @property
    def lists(self) -> dict[str, Path]:
        """The CSV of each split."""
        return {"train": self.folder / self.train, "val": self.folder / self.val}

    @property
    def wanted(self) -> dict[str, int | None]:
        """The requested number of images per split; None: all."""
        return {"train": self.train_images, "val": self.val_images}

    @property
    def remake(self) -> str:
        """The command that makes the caches."""
        online = (self.online_teacher, self.online_latents)
        more: dict[str, Any] = {"buckets": None if self.buckets is None else f"'{str(self.buckets).replace(' ', '')}'"}
        more |= {"online_text": "true" if self.online_text else None}
        more |= {"teacher_sees": None if self.sees == "images" else self.sees, "tae": self.tae}
        return remake_latents_text(self.name, self.images, self.root, self.flip, *online, more)

    @property
    def sizes(self) -> dict[str, Size]:
        """Rows and columns in pixels of each bucket's images, by name; without buckets one size with an empty name."""
        return bucket_sizes(self.buckets, self.image_size)

    @property
    def factor(self) -> int:
        """Pixels that one row or column of a latent stands for."""
        return self.image_size // self.latent_shape[1]

    def shape_of(self, size: Size) -> tuple[int, int, int]:
        """The shape of x0 for images of this size in pixels."""
        channels, height, width = self.latent_shape
        if self.buckets is None:
            return channels, height, width
        return channels, size[0] // self.factor, size[1] // self.factor

    @property
    def latent_shapes(self) -> list[tuple[int, int, int]]:
        return [self.shape_of(size) for size in self.sizes.values()]

    @property
    def bucket_names(self) -> list[str]:
        return list(self.sizes)

    def bucket_samples(self) -> dict[str, dict[str, int]] | None:
        known = self.bucket_counts()
        return None if len(self.sizes) == 1 else known

    def bucket_counts(self) -> dict[str, dict[str, int]] | None:
        """The number of samples per split of these lists in each bucket with images, by its name; None before they are
        counted. Tracks in one folder keep the counts of their lists in one file."""
        file = self.folder / BUCKETS
        if self.buckets is None or not file.is_file():
            return None
        counts: dict[str, dict[str, dict[str, int]]] = read_json(file)
        found = counts.get(self.counted_as)
        return None if found is None else {name: found[name] for name in self.sizes if name in found}

    @property
    def counted_as(self) -> str:
        """The key of these lists and buckets in the file of counts."""
        return " ".join([self.train, self.val, *self.sizes])

    def teacher_grids(self, teacher: OneTeacher) -> list[Grid]:
        return [grid_for(teacher, size, self.image_size) for size in self.sizes.values()]

    def place_of(self, store: str, bucket: str) -> Path:
        """The folder of a bucket's part of a cache, `data.latents` or `data.tokens`."""
        whole = self.folder / store
        return whole.parent / bucket / whole.name

    def check(self) -> None:
        if len(self.latent_shape) != 3:
            raise UserError(f"data.latent_shape={self.latent_shape}: give three numbers, channels, rows and columns")
        self.check_teacher_view()
        self.check_captions()
        if self.captions is not None and self.text is not None:
            raise UserError(
                "data.text is for the classes' prompts, and here conditions are captions, which data.text_encoder "
                "encodes; give data.text=null"
            )
        if self.buckets is not None:
            self._check_buckets()

    def _check_buckets(self) -> None:
        _, height, width = self.latent_shape
        if height != width or self.image_size % height:
            raise UserError(
                f"data.buckets needs data.latent_shape={self.latent_shape} to be that of a square of data.image_size="
                f"{self.image_size} pixels, which is a multiple of its rows; correct one of them"
            )
        check_bucket_list(self.buckets, self.image_size, self.factor, "data.image_size/data.latent_shape[1]")
        if str(self.source) not in PHOTOGRAPHS:
            raise UserError(
                f"data.buckets needs data.source={' or '.join(PHOTOGRAPHS)}; data.source={self.source} has images of "
                "one shape, so drop it"
            )

    def check_given(self, given: Sequence[str], *, has_teacher: bool) -> None:
        """Raises UserError for keys of caches that are not read, and for networks that are not used."""
        refuse_idle_teacher(self.online_teacher, has_teacher)
        self.check_image_given(given)
        if "data.teacher_sees" in given and not has_teacher:
            raise UserError("data.teacher_sees has no effect with loss=none, which has no teacher; drop it")
        idle = {"data.latents": "data.online_latents"} if self.online_latents else {}
        if self.online_teacher:
            idle |= {"data.tokens": "data.online_teacher", "data.token_dtype": "data.online_teacher"}
        if self.captions is not None and "data.prompts" in given:
            raise UserError("data.prompts has no effect with data.captions, which has no prompts of classes; drop it")
        for key in given:
            if key in idle:
                raise UserError(
                    f"{key} has no effect with {idle[key]}=true, which reads no such cache; drop one of them"
                )
        online = self.online_latents and (self.online_teacher or not has_teacher)
        if self.stage_to is not None and online and not self.text_folders:
            raise UserError("data.stage_to has no effect here: there is no cache to copy; drop it")

    def check_inputs(self, batch_size: int) -> None:
        for path in (*self.lists.values(), *self.latents_folders(), *self.text_places):
            if not path.exists():
                raise no_cache_error(path, self.remake)
        if self.online_text:
            self.check_text_files()
        if not self.has_bucket_lists():
            raise no_cache_error(self.folder / BUCKETS, self.remake)
        if (known := self.bucket_samples()) is not None:
            check_buckets({name: counts["train"] for name, counts in known.items()}, batch_size)

    def has_bucket_lists(self) -> bool:
        """Whether the buckets' lists exist, or there are no buckets."""
        return self.buckets is None or self.bucket_counts() is not None

    def latents_folders(self) -> list[Path]:
        """The folders of the latents; empty if they are computed online."""
        names = [""] if self.buckets is None else list(self.bucket_counts() or {})
        return [] if self.online_latents else [self.place_of(self.latents, name) for name in names]

    def check_stage(self, stage: str, shard: str) -> None:
        check_latent_stage(self, stage)

    def has_latents(self) -> bool:
        there = (*self.lists.values(), *self.latents_folders())
        return self.has_bucket_lists() and all(path.exists() for path in there)

    def has_tokens(self, teacher: OneTeacher) -> bool:
        """Assumed to be there: opening the caches raises UserError if they are missing."""
        return True

    def expected_samples(self) -> dict[str, int] | None:
        return None if all(path.exists() for path in self.lists.values()) else self.wanted_samples()

    def wanted_samples(self) -> dict[str, int]:
        """The number of samples in each split once the lists are made."""
        images = "imagenet" if self.class_names == "imagenet" else self.images
        return expected_latent_samples(self.wanted, partial(count_source_images, str(self.source), images))

    def count_classes(self) -> int:
        names = self.folder / CLASSES
        if names.is_file():
            return len(read_json(names, list))
        return count_source_classes(str(self.source), self.images)

    def hub_files(self) -> dict[str, list[str]]:
        named = [(self.vae, VAE_FILES), (self.text, TEXT_FILES), (self.tae, TAE_FILES)]
        found: dict[str, list[str]] = {}
        for name, patterns in named:
            if name is not None and is_hub_id(name):
                found.setdefault(name, []).extend(patterns)
        return found | ({} if self.image_encoder is None else self.image_encoder.hub_files())

    def stages(self) -> Stages:
        asked = {"latents": self.online_latents, "tokens": self.online_teacher}  # computed during training
        sharded = ["images", "latents", "tokens", *(["text"] if self.text_folders else [])]
        image = [] if self.image_encoder is None else [self.image_tokens_name(size) for size in self.sizes.values()]
        sharded[3:3] = ["image_tokens"] if image else []
        return Stages(
            place=(self.root, self.latents if self.buckets is None else f"{'+'.join(self.sizes)}/{self.latents}"),
            tokens=" ".join([self.tokens, *(folder.name for folder in self.text_folders), *image]),
            images=inf if self.train_images is None else float(self.train_images),
            first=("manifest",) if self.text is None else ("manifest", "prompts"),
            sharded=tuple(name for name in sharded if not asked.get(name, False)),
        )

    def make_caches(self, teacher: Any, stage: str, shard: tuple[int, int], batch_size: int) -> None:
        from urepa.data.stages.build import Build
        from urepa.data.stores.lmdb_store import Part

        Build(self.build(), teacher, Part(*shard), batch_size).run(stage)

    def build(self) -> LatentTrackCaches:
        from urepa.data.tracks.latent_caches import LatentTrackCaches

        return LatentTrackCaches(self)

    def description(self, images: str) -> str:
        return describe_latents(self, images)
