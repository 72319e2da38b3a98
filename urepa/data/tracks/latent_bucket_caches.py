"""A latent track's images of one shape: the paths of their latents, tokens and cut images, and how these are opened.

The bucket's folder is the track's if `data.buckets` is null, and TRACK/HxW otherwise; see `latent_caches` for the
layout below it.

Shapes: CHW latent; H and W rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from urepa.core.errors import UserError
from urepa.core.files import read_json
from urepa.data.cache import (
    Cache,
    mirrored_folder,
    open_store,
    refuse_changed,
    refuse_differing,
    token_stores,
)
from urepa.data.image_statistics import IMAGE_TOKENS
from urepa.data.lists.samples import Keys, Samples, read_split
from urepa.data.online_encoders import OnlineLatents, OnlineTokens
from urepa.data.sources.decoding import rectangle, square
from urepa.data.stages.decoded_images import TeacherView
from urepa.data.stages.encode import short_name, vae_encoder
from urepa.data.stages.image_archives import ImageArchive, skipped_ids
from urepa.data.stages.vae_config import known_scaling
from urepa.data.stores.record_reading import Store
from urepa.data.tracks.image_token_caches import ImageTokens
from urepa.models.teachers.rectangle_sizes import grid_for, teacher_on_grid
from urepa.models.teachers.several_teachers import by_name

if TYPE_CHECKING:
    from urepa.data.tracks.latent_track import LatentTrack

Splits = dict[str, Samples]


@dataclass(frozen=True)
class Opened:
    """What all buckets of a track share when they are opened: conditions, class names, the paths of the stores' copies,
    and manifests that replace the files in folders that are being adopted."""

    conditions: Any  # `urepa.core.track_protocols.ConditionMaker`
    class_names: Sequence[str]
    places: Mapping[Path, Path]
    manifests: Mapping[Path, dict[str, Any]]
    encoders: list[Any] = field(default_factory=list)  # holds the VAE's encoder with its facts once a bucket needs it


class LatentBucket:
    """Opens the caches of the images of one shape."""

    def __init__(self, settings: LatentTrack, name: str, size: tuple[int, int], view: TeacherView) -> None:
        """The images have `size` pixels (rows, columns). `name` is empty without buckets. `view`: what teachers see."""
        self.settings, self.name, self.size, self.view = settings, name, size, view
        self.folder = settings.folder / name
        self.latents = settings.place_of(settings.latents, name)
        self.tokens = settings.place_of(settings.tokens, name)
        self.csv = {split: self.folder / path.name if name else path for split, path in settings.lists.items()}
        self.latent_shape, self.image_shape = settings.shape_of(size), (3, *size)
        self.remake = settings.remake
        self.image_tokens = None if settings.image_encoder is None else ImageTokens(settings, self.folder, size)

    # --- what is there ----------------------------------------------------------------------------------

    def record_shape(self) -> list[int]:
        """The shape of a latents record: [C,H,W], or [2,C,H,W] with moments."""
        return [2, *self.latent_shape] if self.settings.moments else list(self.latent_shape)

    def image_facts(self) -> dict[str, Any]:
        """The manifest's entries about the images, the same for latents and tokens."""
        return {"image_size": list(self.size) if self.name else self.settings.image_size, "crop": "center"}

    def cut(self, pixels: np.ndarray) -> Any:
        """An image, uint8 [H,W,3], cut to the bucket's size: a PIL image."""
        return rectangle(pixels, self.size) if self.name else square(pixels, self.settings.image_size)

    def teachers(self, teacher: Any | None) -> dict[str, Any]:
        """The teachers by name, each for images of this shape. Raises UserError for a teacher of square images only."""
        side = self.settings.image_size
        return {name: teacher_on_grid(one, grid_for(one, self.size, side)) for name, one in by_name(teacher).items()}

    def stores(self, teacher: Any | None) -> dict[str, tuple[tuple[int, ...], str]]:
        """The shape and data type of each cache's records."""
        stores: dict[str, tuple[tuple[int, ...], str]] = {}
        if not self.settings.online_latents:
            stores["latents"] = (tuple(self.record_shape()), "float16")
        if self.image_tokens is not None:
            stores[IMAGE_TOKENS] = (tuple(self.image_tokens.record_shape), "float16")
        if self.settings.online_teacher:
            return stores
        return stores | token_stores(self.teachers(teacher), str(self.settings.token_dtype))

    def tokens_folders(self, teacher: Any | None) -> dict[str, Path]:
        """The folder of each teacher's tokens, if they are cached: `data.tokens`, or `data.tokens`.NAME of several."""
        names = () if self.settings.online_teacher else by_name(teacher)
        return {
            name: self.tokens.with_name(f"{self.tokens.name}.{name}" if name else self.tokens.name) for name in names
        }

    def store_folders(self, teacher: Any | None) -> list[Path]:
        """The folders of all caches."""
        latents = [] if self.settings.online_latents else [self.latents]
        image = [] if self.image_tokens is None else [self.image_tokens.folder]
        plain = [*latents, *self.tokens_folders(teacher).values(), *image]
        return plain + ([mirrored_folder(path) for path in plain] if self.settings.flip else [])

    def record(self) -> dict[str, Any]:
        """track.json: digests of the CSVs, the identity of their images, and images that could not be read."""
        file = self.folder / "track.json"
        return read_json(file) if file.exists() else {}

    def listed(self) -> Samples:
        """The samples of all splits, from the lists."""
        return Samples.concatenate(map(read_split, self.csv.values()))

    def samples(self) -> Splits:
        """The splits, without samples that have no image. Raises UserError if a CSV is not the one that the caches were
        made from."""
        known = self.record()
        refuse_changed(list(self.csv.values()), known.get("csv_sha256", {}), self.remake)
        skipped = skipped_ids(self.folder).union(known.get("skipped", []))
        splits = {split: read_split(path) for split, path in self.csv.items()}
        for split, rows in splits.items():
            largest = int(rows.class_ids().max(initial=0))
            if largest >= self.settings.num_classes:
                raise UserError(
                    f"{self.csv[split]} has a class {largest}; data.num_classes={self.settings.num_classes}"
                )
        return {split: rows.filter(i not in skipped for i in rows.ids()) for split, rows in splits.items()}

    # --- opening ----------------------------------------------------------------------------------------

    def archive(self, splits: Splits) -> ImageArchive:
        """The cut images of every sample."""
        mark = self.folder / "images" / "begun.json"
        if not mark.is_file():
            raise UserError(f"there are no images at {mark.parent}; {self.remake}, or give data.root=FOLDER")
        refuse_differing(mark.parent, read_json(mark), self.image_facts(), self.remake)
        archive, ids = ImageArchive(self.folder), Keys(splits.values())
        if missing := archive.missing(ids):
            raise UserError(
                f"{mark.parent} lacks {len(missing)} of {len(ids)} images (first: '{min(missing)}'); {self.remake}"
            )
        return archive

    def open(self, teacher: Any | None, splits: Splits, archive: ImageArchive | None, known: Opened) -> Cache:
        """Opens the existing caches, and the networks that replace the others during training. `archive`: the images,
        if training reads them."""
        teachers, settings = self.teachers(teacher), self.settings
        opened = partial(self._store, known, splits)
        latents: Store | OnlineLatents
        if settings.online_latents:
            assert archive is not None
            latents = self._open_online_latents(archive, splits, known)
        else:
            latents = self._open_latents(opened)
        tokens: dict[str, Store | OnlineTokens] = {
            name: opened(folder, {"teacher": teachers[name].manifest() | self.view.facts()})
            for name, folder in self.tokens_folders(teacher).items()
        }
        if settings.online_teacher and teachers:
            shown, facts = self.view.online(latents, archive), self.view.facts()
            known_ids = splits["train"].ids()
            tokens = {name: OnlineTokens(one, shown, known_ids, facts) for name, one in teachers.items()}
        grids = {name: one.grid for name, one in teachers.items()}
        more: dict[str, Any] = {"images": archive, "class_names": known.class_names, "bucket": self.name}
        conditions = known.conditions
        if self.image_tokens is not None:
            image = opened(self.image_tokens.folder, self.image_tokens.expected())
            conditions = conditions.opened(image, self.size)
        more["text"] = getattr(conditions, "records", None)
        more["image_tokens"] = getattr(conditions, "image_records", None)
        return Cache(splits, latents, tokens, grids, settings.num_classes, conditions, **more)

    def _open_latents(self, opened: Callable[[Path, dict[str, Any]], Store]) -> Store:
        shape, name = {"shape": self.record_shape(), "flip": "none"}, self.settings.vae
        latents = opened(self.latents, shape | self.image_facts())
        if "vae" in latents.manifest:  # unknown for an adopted store
            scaling = known_scaling(name)
            facts = {"vae": short_name(name)} | ({} if scaling is None else scaling.facts())
            refuse_differing(self.latents, latents.manifest, facts, self.remake)
        return latents

    def _open_online_latents(self, archive: ImageArchive, splits: Splits, known: Opened) -> OnlineLatents:
        """Latents computed by the VAE during training. Encodes one image at once, so a mismatch is found before the
        first step."""
        if not known.encoders:
            known.encoders.append(vae_encoder(self.settings.vae, self.settings.moments))
        encode, facts = known.encoders[0]
        facts = facts | self.image_facts() | {"shape": self.record_shape()}
        mark = self.folder / "images" / "begun.json"
        latents = OnlineLatents(encode, archive.pixels, facts, mark, self.settings.flip)
        self.require_shape(latents.tensor([splits["train"][0].sample_id]).shape[-3:])
        return latents

    def require_shape(self, encoded: Sequence[int]) -> None:
        """Raises UserError if the VAE's latents have another shape than `data.latent_shape`."""
        if tuple(encoded) != self.latent_shape:
            here = "these images" if not self.name else f"images of {self.name}"
            raise UserError(
                f"data.vae={self.settings.vae} makes latents of shape {list(encoded)} from {here}; data.latent_shape="
                f"{list(self.settings.latent_shape)}"
            )

    def _store(self, known: Opened, splits: Splits, folder: Path, expected: dict[str, Any]) -> Store:
        """The store with every sample and, with flips, the mirrored store with the training samples."""
        keys, mirrored = Keys(splits.values()), Keys([splits["train"]]) if self.settings.flip else None
        return open_store(known.places.get(folder, folder), expected, keys, self.remake, mirrored, known.manifests)
