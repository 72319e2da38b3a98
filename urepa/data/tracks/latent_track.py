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
from urepa.core.declared_keys import COUNT, SIZE, setting
from urepa.core.descriptions import number, shape
from urepa.core.errors import UserError
from urepa.core.hub_names import is_hub_id
from urepa.core.protocols import OneTeacher
from urepa.core.track_protocols import Stages
from urepa.data.lists.classes import class_names
from urepa.data.lists.paths import (
    is_finished,
    lost_list_error,
    no_cache_error,
    no_list_error,
    remake_latents_text,
    unfinished_error,
)
from urepa.data.lists.split_sizes import expected_latent_samples
from urepa.data.sources.source_files import Source, check_images, count_source_images
from urepa.data.stages.vae_config import DC, known_config, known_scaling
from urepa.data.track_defaults import TrackDefaults, refuse_idle_teacher, tell_draws

if TYPE_CHECKING:
    from urepa.data.tracks.latent_caches import LatentTrackCaches

VAE_FILES = [  # a pipeline's, or by itself
    "vae/config.json",
    "vae/*.safetensors",
    "config.json",
    "diffusion_pytorch_model.safetensors",
]
TAE_FILES = ["config.json", "diffusion_pytorch_model.safetensors"]
TEXT_FILES = ["tokenizer/*", "text_encoder/config.json", "text_encoder/model.safetensors"]


class TeacherSees(Enum):
    images = "images"
    decoded = "decoded"  # what the VAE decodes of their latents
    tae_decoded = "tae_decoded"  # what a Tiny AutoEncoder does


class TokenDtype(Enum):
    float16 = "float16"
    int8 = "int8"  # in groups of 128, half the disk


@dataclass
class LatentTrack(TrackDefaults):
    """Latents of a VAE and a teacher's tokens, made in stages by several processes."""

    _target_: str = "urepa.data.tracks.latent_track.LatentTrack"
    name: str = setting("the track's name", alters=NOTHING)
    root: str = setting("the folder that holds what is made")
    source: Source = setting("how the images are stored")
    images: str = setting("where the images are: a folder, or a repository's name for source=hub")
    train_images: int | None = setting(
        "training images, class-balanced; null: all", ge=1, le=COUNT, alters=NOTHING, unpairs=True
    )
    val_images: int | None = setting("validation images, class-balanced; null: all", ge=1, le=COUNT)
    image_size: int = setting("side of the squares, pixels", ge=1, le=SIZE)
    vae: str = setting("a hub id or a local diffusers folder")
    text: str | None = setting("the same, for the text encoder of the prompts; null: the backbone takes class ids")
    class_names: str | None = setting(
        '"imagenet", or a file with a name a line; null: only prompts and grids need names'
    )
    moments: bool = setting(
        "keep the posterior's mean and standard deviation, to sample latents in training", alters=NOTHING, unpairs=True
    )
    token_dtype: TokenDtype = setting(
        "how tokens are stored; int8: in groups of 128 with a scale each, half the disk", alters=ALIGNMENT
    )
    max_skipped: float = setting(
        "the share of images that may be unreadable (above 0: one at least); all are listed",
        ge=0,
        le=1,
        alters=NOTHING,
        unpairs=True,
    )
    latents: str = setting("the folder of latents")
    tokens: str = setting("the folder of the teacher's tokens", alters=NOTHING)
    train: str = setting("CSV of sample_id,class_id,path,split for training", alters=NOTHING, unpairs=True)
    val: str = setting("the same for validation")
    prompts: str = setting("the .pt file of the prompts' embeddings")
    latent_shape: list[int] = setting("channels, rows and columns of a latent", ge=1, le=SIZE)
    num_classes: int = setting("number of classes", ge=1, le=SIZE)
    cfg_dropout: float = setting("probability that a training sample loses its class", ge=0, le=1, alters=NOTHING)
    flip: bool = setting(
        "train on mirror images as often; the caches then hold both", False, alters=NOTHING, unpairs=True
    )
    online_teacher: bool = setting(
        "ask the teacher about the images stage's squares, without its cache", False, alters=NOTHING
    )
    online_latents: bool = setting(
        "encode the images stage's squares while training, without a cache of latents", False, alters=NOTHING
    )
    stage_to: str | None = setting("a node-local folder to copy the caches to before training; null: none", None)
    teacher_sees: TeacherSees = setting(
        "what the teacher is shown: the images, or what the VAE, or the Tiny AutoEncoder `data.tae`, decodes of their "
        "latents",
        TeacherSees.images,
        alters=ALIGNMENT,
    )
    tae: str | None = setting(
        "a hub id or a local folder of diffusers' AutoencoderTiny, for data.teacher_sees=tae_decoded",
        None,
        alters=ALIGNMENT,
    )

    not_in_caches: ClassVar[tuple[str, ...]] = ("cfg_dropout", "stage_to")
    of_images: ClassVar[tuple[str, ...]] = ("latent_shape", "image_size", "num_classes")
    without_copies: ClassVar[Mapping[str, Any]] = {"stage_to": None}

    @property
    def folder(self) -> Path:
        """Where everything lies."""
        return Path(self.root)

    @property
    def lists(self) -> dict[str, Path]:
        """The CSV of each split."""
        return {"train": self.folder / self.train, "val": self.folder / self.val}

    @property
    def wanted(self) -> dict[str, int | None]:
        """How many images of each split there are to be; None: all."""
        return {"train": self.train_images, "val": self.val_images}

    @property
    def remake(self) -> str:
        """The command that makes the caches."""
        online = (self.online_teacher, self.online_latents)
        keys = {} if self.sees == "images" else {"teacher_sees": self.sees}
        keys |= {} if self.tae is None else {"tae": self.tae}
        return remake_latents_text(self.name, self.images, self.root, self.flip, *online, keys)

    @property
    def sees(self) -> str:
        """`teacher_sees` as text."""
        return str(self.teacher_sees).rpartition(".")[2]

    def check(self) -> None:
        if len(self.latent_shape) != 3:
            raise UserError(f"data.latent_shape={self.latent_shape}: give three numbers, channels, rows and columns")
        if self.sees == "tae_decoded" and self.tae is None:
            raise UserError(
                "data.teacher_sees=tae_decoded needs data.tae, as data.tae=madebyollin/taesd for SD-1.5's latents"
            )
        if self.sees != "tae_decoded" and self.tae is not None:
            raise UserError(f"data.tae has no effect with data.teacher_sees={self.sees}; drop it, or give tae_decoded")

    def check_given(self, given: Sequence[str], *, has_teacher: bool) -> None:
        """What is asked of a network in training has no cache, and nobody is asked for nothing."""
        refuse_idle_teacher(self.online_teacher, has_teacher)
        if "data.teacher_sees" in given and not has_teacher:
            raise UserError("data.teacher_sees has no effect with loss=none, which has no teacher; drop it")
        idle = {"data.latents": "data.online_latents"} if self.online_latents else {}
        if self.online_teacher:
            idle |= {"data.tokens": "data.online_teacher", "data.token_dtype": "data.online_teacher"}
        for key in given:
            if key in idle:
                raise UserError(
                    f"{key} has no effect with {idle[key]}=true, which reads no such cache; drop one of them"
                )
        if self.stage_to is not None and self.online_latents and (self.online_teacher or not has_teacher):
            raise UserError("data.stage_to has no effect here: there is no cache to copy; drop it")

    def check_inputs(self, batch_size: int) -> None:
        for path in (*self.lists.values(), *self._latents_folders()):
            if not path.exists():
                raise no_cache_error(path, self.remake)

    def _latents_folders(self) -> list[Path]:
        """The folder of the latents; empty if they are computed online."""
        return [] if self.online_latents else [self.folder / self.latents]

    def check_stage(self, stage: str, shard: str) -> None:
        """UserError where a stage lacks what it reads."""
        missing = [path for path in self.lists.values() if not path.exists()]
        online = {"latents": self.online_latents, "tokens": self.online_teacher}
        if stage in ("all", "manifest") and missing:
            check_images(str(self.source), self.images)
        elif stage in ("images", "latents", "tokens") and missing and not online.get(stage, False):
            raise no_list_error(missing[0])
        elif stage == "adopt" and missing:
            raise lost_list_error(missing[0], self.remake)
        elif stage == "verify":
            self.check_inputs(1)
        elif stage == "digest":
            for store in self._latents_folders():
                if not is_finished(store):
                    raise unfinished_error(store, self.remake)
        elif stage == "prompts" and self.class_names is not None and not (self.folder / self.prompts).exists():
            class_names(self.class_names)

    def has_latents(self) -> bool:
        return all(path.exists() for path in (*self.lists.values(), *self._latents_folders()))

    def has_tokens(self, teacher: OneTeacher) -> bool:
        """They are there, or their lack is said when they are opened."""
        return True

    def expected_samples(self) -> dict[str, int] | None:
        return None if all(path.exists() for path in self.lists.values()) else self.wanted_samples()

    def wanted_samples(self) -> dict[str, int]:
        """How many samples the lists get when they are made."""
        images = "imagenet" if self.class_names == "imagenet" else self.images
        return expected_latent_samples(self.wanted, partial(count_source_images, str(self.source), images))

    def count_classes(self) -> int:
        raise UserError("the classes of a latent track are not counted; give data.num_classes=N")

    def hub_files(self) -> dict[str, list[str]]:
        named = [(self.vae, VAE_FILES), (self.text, TEXT_FILES), (self.tae, TAE_FILES)]
        found: dict[str, list[str]] = {}
        for name, patterns in named:
            if name is not None and is_hub_id(name):
                found.setdefault(name, []).extend(patterns)
        return found

    def stages(self) -> Stages:
        asked = {"latents": self.online_latents, "tokens": self.online_teacher}  # while training
        return Stages(
            place=(self.root, self.latents),
            tokens=self.tokens,
            images=inf if self.train_images is None else float(self.train_images),
            first=("manifest",) if self.text is None else ("manifest", "prompts"),
            sharded=tuple(name for name in ("images", "latents", "tokens") if not asked.get(name, False)),
        )

    def make_caches(self, teacher: Any, stage: str, shard: tuple[int, int], batch_size: int) -> None:
        from urepa.data.stages.build import Build
        from urepa.data.stores.lmdb_store import Part

        Build(self.build(), teacher, Part(*shard), batch_size).run(stage)

    def build(self) -> LatentTrackCaches:
        from urepa.data.tracks.latent_caches import LatentTrackCaches

        return LatentTrackCaches(self)

    def description(self, images: str) -> str:
        size = self.image_size
        posterior = "a sample of its posterior, drawn anew in training" if self.moments else "its posterior's mode"
        config, scaling = known_config(self.vae), known_scaling(self.vae)
        if config is not None and config.get("_class_name") == DC:  # moments of it are refused
            posterior = "which have no posterior"
        scaled = "shifted and scaled as its config says" if scaling is None else scaling.words
        when = "in training, anew each time," if self.online_latents else "once"
        text = "" if self.text is None else f", and the classes' prompts by the text encoder of {self.text}"
        return (
            f"{self.name} (source {self.source}): {images}, in {number(self.num_classes)} classes. Central "
            f"squares at {size}×{size} pixels are encoded {when} by the VAE of {self.vae} to latents of "
            f"{shape(self.latent_shape)} ({posterior}, {scaled}){text}. {self._told_of_teacher()}"
            f"{tell_draws(self.cfg_dropout, self.flip)}"
        )

    def _told_of_teacher(self) -> str:
        """What the teacher sees, where it is not the images."""
        decoder = {"decoded": "the VAE", "tae_decoded": f"the Tiny AutoEncoder of {self.tae}"}.get(self.sees)
        return "" if decoder is None else f"The teacher sees what {decoder} decodes of the latents, not the images. "
