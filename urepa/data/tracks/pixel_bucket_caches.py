"""A small track's images of one shape: how x0 and the teachers' tokens are made from them, and opened.

The bucket's folder is the track's if there is one bucket, and TRACK/HxW if there are several. It has latents/,
tokens_TEACHER/, the stores of their mirror images, and a CSV per split.

Shapes: B batch, C image channels, H and W rows and columns of an image in pixels, f unshuffle factor; x0 is
[B, C·f², H/f, W/f] in [-scale, scale].
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from urepa.core.files import missing_folders, read_json, remove_new
from urepa.data.cache import (
    SPLITS,
    Cache,
    csv_digests,
    mirrored_facts,
    mirrored_folder,
    open_store,
    refuse_changed,
    refuse_differing,
    token_stores,
)
from urepa.data.image_statistics import IMAGE_TOKENS
from urepa.data.lists.bucket_shapes import cut_to_aspect
from urepa.data.lists.paths import is_finished, remake_pixels_text, tokens_name
from urepa.data.lists.samples import Keys, Sample, Samples, digest_of, read_split, write_split
from urepa.data.online_encoders import OnlineTokens, images_of
from urepa.data.sources.decoding import UNREADABLE
from urepa.data.sources.source_image import SourceImage
from urepa.data.stages.encode import Encode, Output, Todo, device_and_dtype, encode_part, outputs_of, seal
from urepa.data.stores.digests import BLAKE2B, IN_MANIFEST, KEY
from urepa.data.stores.lmdb_pages import has_records, rows_of
from urepa.data.stores.lmdb_store import Part
from urepa.data.stores.record_reading import Store
from urepa.data.stores.sealing import digests_of_records
from urepa.data.tracks.image_token_caches import ImageTokens
from urepa.data.tracks.pixel_sizes import check_channels
from urepa.models.teachers.rectangle_sizes import grid_for, teacher_on_grid
from urepa.models.teachers.several_teachers import by_name

if TYPE_CHECKING:
    from urepa.data.tracks.pixel_track import PixelTrack

CHUNK = 64  # images that are encoded together
Images = Callable[[Sequence[Sample]], tuple[Sequence[Sample], Tensor]]  # the readable ones, as [B,C,H,W] in [0,1]


class PixelBucket:
    """Builds and opens the caches of the images of one shape."""

    def __init__(self, settings: PixelTrack, name: str, size: tuple[int, int]) -> None:
        """The images have `size` pixels (rows, columns). `name` is empty if this is the track's only bucket."""
        self.settings, self.name, self.size = settings, name, size
        self.folder = settings.folder / name
        self.latents = self.folder / "latents"
        self.latent_shape = settings.shape_of(size)
        self.remake = remake_pixels_text(settings.name)
        self.image_tokens = None if settings.image_encoder is None else ImageTokens(settings, self.folder, size)

    def _manifest(self) -> dict[str, Any]:
        s = self.settings
        return {
            "kind": "pixels",
            "track": s.name,
            "image_size": list(self.size) if self.name else s.image_size,
            "unshuffle": s.unshuffle,
            "scale": s.scale,
            "limit": s.limit,
            "held_out": s.held_out,
            "num_classes": s.num_classes,
            "flip": "none",
        }

    # --- what is there ----------------------------------------------------------------------------------

    def tokens_folders(self, teacher: Any | None) -> dict[str, Path]:
        """The folder of each teacher's tokens, if they are cached."""
        if self.settings.online_teacher:
            return {}
        return {name: self._folder_of(one) for name, one in self.teachers(teacher).items()}

    def store_folders(self, teacher: Any | None) -> list[Path]:
        """The folders of all caches."""
        plain = list(dict.fromkeys([self.latents, *self.tokens_folders(teacher).values()]))  # teachers may share one
        plain += [] if self.image_tokens is None else [self.image_tokens.folder]
        return plain + ([mirrored_folder(path) for path in plain] if self.settings.flip else [])

    def stores(self, teacher: Any | None) -> dict[str, tuple[tuple[int, ...], str]]:
        """The shape and data type of each cache's records."""
        stores: dict[str, tuple[tuple[int, ...], str]] = {"latents": (self.latent_shape, "float16")}
        if self.image_tokens is not None:
            stores[IMAGE_TOKENS] = (tuple(self.image_tokens.record_shape), "float16")
        return stores | ({} if self.settings.online_teacher else token_stores(self.teachers(teacher), "float16"))

    def teachers(self, teacher: Any | None) -> dict[str, Any]:
        """The teachers by name, each for images of this shape. Raises UserError for a teacher of square images only."""
        side = self.settings.image_size
        return {name: teacher_on_grid(one, grid_for(one, self.size, side)) for name, one in by_name(teacher).items()}

    def _folder_of(self, teacher: Any) -> Path:
        known = teacher.manifest()
        return self.folder / tokens_name(known["model"], known["image_size"], teacher.grid, known.get("positions"))

    def open(self, teacher: Any | None, class_names: Sequence[str], conditions: Any) -> Cache:
        """Opens the existing caches with the track's conditions. `teacher` None: no tokens."""
        folders, teachers, s = self.tokens_folders(teacher), self.teachers(teacher), self.settings
        splits = self.splits()
        latents = self._store(self.latents, self._manifest(), splits)
        opened: dict[Path, Store] = {}  # a store that two names share is opened once, as LMDB requires
        tokens: dict[str, Store | OnlineTokens] = {}
        for name, folder in folders.items():
            if folder not in opened:
                opened[folder] = self._store(folder, {"teacher": teachers[name].manifest()}, splits)
            tokens[name] = opened[folder]
        if s.online_teacher:
            read = partial(images_of, read=partial(self._images, latents))
            tokens = {name: OnlineTokens(one, read, splits["train"].ids()) for name, one in teachers.items()}
        grids = {name: one.grid for name, one in teachers.items()}
        if self.image_tokens is not None:
            image = self._store(self.image_tokens.folder, self.image_tokens.expected(), splits)
            conditions = conditions.opened(image, self.size)
        known: dict[str, Any] = {"class_names": class_names, "bucket": self.name}
        known |= {"text": getattr(conditions, "records", None)}
        known |= {"image_tokens": getattr(conditions, "image_records", None)}
        return Cache(splits, latents, tokens, grids, s.num_classes, conditions, **known)

    def has_caches(self, teacher: Any | None) -> bool:
        """Whether everything that training reads is cached."""
        image = [] if self.image_tokens is None else [self.image_tokens.folder]
        return all(is_finished(path) for path in (self.latents, *self.tokens_folders(teacher).values(), *image))

    def has_results(self) -> bool:
        """Whether any store has records."""
        return self.folder.is_dir() and any(map(has_records, self.folder.iterdir()))

    def splits(self) -> dict[str, Samples]:
        """The splits. Raises UserError if a list has changed since the latents were made from it."""
        files = self._lists()
        refuse_changed(files, Store(self.latents).manifest.get("csv_sha256", {}), self.remake)
        return {split: read_split(file) for split, file in zip(SPLITS, files, strict=True)}

    def _lists(self) -> list[Path]:
        return [self.folder / f"{split}.csv" for split in SPLITS]

    def _store(self, folder: Path, expected: dict[str, Any], splits: dict[str, Samples]) -> Store:
        mirrored = Keys([splits["train"]]) if self.settings.flip else None
        return open_store(folder, expected, Keys(splits.values()), self.remake, mirrored)

    # --- latents ----------------------------------------------------------------------------------------

    def encode_latents(self, samples: Samples, rows: dict[str, SourceImage]) -> dict[str, str]:
        """Writes the missing latents. Returns the reason by sample id for images that cannot be read."""
        reasons: dict[str, str] = {}

        def images(chosen: Sequence[Sample]) -> tuple[list[Sample], Tensor]:
            read = {}
            for s in chosen:
                try:
                    pixels = rows[s.sample_id].load()
                except UNREADABLE as error:
                    reasons[s.sample_id] = f"{s.path}: {error}"
                else:
                    read[s] = self.cut(pixels)
            return list(read), torch.cat([torch.empty(0, self.settings.channels, *self.size), *read.values()])

        def latents(images_BCHW: Tensor) -> np.ndarray:
            return self.to_x0(images_BCHW).numpy()

        self._encode(self._latents_output(), samples, images, latents)
        return reasons

    def lacks_latents(self) -> bool:
        """Whether the finished latents lack a record."""
        return not _is_complete(self._latents_output(), self.listed())

    def listed(self) -> Samples:
        """The samples of all splits, from the lists."""
        return Samples.concatenate(map(read_split, self._lists()))

    def has_other_records(self, samples: Samples) -> bool:
        """Whether there are latents of other samples too."""
        store = Store(self.latents, self._latents_output().facts)
        count = store.count()
        store.close()
        return count != len(samples)

    def equal_images(self, samples: Samples) -> list[list[str]]:
        """Groups of ids of samples whose latents are byte for byte equal, as those of equal images are."""
        store = Store(self.latents, self._latents_output().facts)
        rows_R4 = digests_of_records(store)
        store.close()
        at_R = rows_of(samples.key_digests(""), rows_R4[:, KEY])
        assert (at_R >= 0).all(), "every sample has latents"
        _, kinds_R, counts = np.unique(rows_R4[at_R, BLAKE2B], axis=0, return_inverse=True, return_counts=True)
        groups: dict[int, list[str]] = {}
        for row in np.flatnonzero(counts[kinds_R.ravel()] > 1):
            groups.setdefault(int(kinds_R.ravel()[row]), []).append(samples[int(row)].sample_id)
        return list(groups.values())

    def write_lists(self, lists: dict[str, Samples]) -> None:
        """Writes a CSV per split."""
        for split, chosen in lists.items():
            write_split(self.folder / f"{split}.csv", chosen)

    def seal_latents(self, samples: Samples) -> None:
        """Marks the latents as finished."""
        output = self._latents_output()
        digests = {"csv_sha256": csv_digests(self._lists())}
        seal(replace(output, facts=output.facts | digests), digest_of(samples))

    def _latents_output(self) -> Output:
        return Output(self.latents, self._manifest() | {"shape": list(self.latent_shape), "dtype": "float16"})

    # --- what is made of the latents --------------------------------------------------------------------

    def build_others(self, teacher: Any | None) -> None:
        """Makes the missing mirror images and tokens from the latents."""
        latents = Store(self.latents)
        refuse_differing(self.latents, latents.manifest, self._manifest(), self.remake)
        splits = self.splits()
        if self.settings.flip:
            self._build_mirrored_latents(latents, splits)
        for name, folder in self.tokens_folders(teacher).items():
            self._build_tokens(self.teachers(teacher)[name], folder, latents, splits)
        if self.image_tokens is not None:
            read = partial(self._images_of, latents)
            self._build_store(self.image_tokens.output(), splits, read, self.image_tokens.encode)
        latents.close()

    def _build_mirrored_latents(self, latents: Store, splits: dict[str, Samples]) -> None:
        facts = mirrored_facts({k: v for k, v in latents.manifest.items() if k not in ("count", *IN_MANIFEST)})
        output, f = Output(mirrored_folder(self.latents), facts, mirrored=True), self.settings.unshuffle

        def images(samples: Sequence[Sample]) -> Tensor:
            return F.pixel_shuffle(torch.from_numpy(latents.read([s.sample_id for s in samples])), f)

        def mirror(images_BCHW: Tensor) -> np.ndarray:
            return F.pixel_unshuffle(images_BCHW, f).numpy()

        self._build_store(output, splits, images, mirror)

    def _build_tokens(self, teacher: Any, folder: Path, latents: Store, splits: dict[str, Samples]) -> None:
        device, _ = device_and_dtype()
        shape = [teacher.grid[0] * teacher.grid[1], teacher.width]
        facts = {"kind": "tokens", "track": self.settings.name, "flip": "none", "teacher": teacher.manifest()}
        facts |= {"shape": shape, "dtype": "float16"}

        images = partial(self._images_of, latents)

        def tokens(images_B3HW: Tensor) -> np.ndarray:
            return teacher.tokens(images_B3HW.to(device)).x_BND.cpu().numpy()

        for output in outputs_of(Output(folder, facts), self.settings.flip):
            self._build_store(output, splits, images, tokens)

    def _build_store(
        self, output: Output, splits: dict[str, Samples], images: Callable[[Sequence[Sample]], Tensor], encode: Encode
    ) -> None:
        """Writes the missing records of a store and seals it."""
        samples = Samples.concatenate(splits[split] for split in SPLITS)
        if not _is_complete(output, samples):
            self._encode(output, samples, lambda chosen: (chosen, images(chosen)), encode)
            seal(output, digest_of(samples))

    def _encode(self, output: Output, samples: Samples, images: Images, encode: Encode) -> None:
        """Writes a store's missing records, for samples whose images can be read."""
        begun = output.folder / "begun.json"
        known = read_json(begun) if begun.exists() else output.facts
        if any(known.get(key) != value for key, value in output.facts.items()):
            shutil.rmtree(output.folder)  # the images have changed, and the store was never finished

        def read(todo: Todo) -> Iterator[tuple[Sequence[Sample], Tensor]]:
            for start in range(0, len(samples), CHUNK):
                if wanted := todo(samples[start : start + CHUNK]):
                    chosen, images_BCHW = images(wanted)
                    if chosen:
                        yield chosen, images_BCHW

        new = missing_folders(output.folder)
        try:
            encode_part(output, Part(), samples, read, encode, self.remake, digest_of(samples))
        except BaseException:
            if not has_records(output.folder):  # for example, weights could not be read
                remove_new(new)
            raise

    # --- images -----------------------------------------------------------------------------------------

    def cut(self, pixels: np.ndarray) -> Tensor:
        """The largest central rectangle of the bucket's aspect ratio in an image, uint8 [H,W] or [H,W,3], resized to
        the bucket's size: [1,C,H,W] in [0,1]."""
        pixels = pixels if pixels.ndim == 3 else pixels[..., None]
        check_channels(self.settings.channels, pixels.shape[2])
        height, width = cut_to_aspect((pixels.shape[0], pixels.shape[1]), self.size)
        top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
        pixels = pixels[top : top + height, left : left + width]
        image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
        if image.shape[-2:] != self.size:
            image = F.interpolate(image, size=self.size, mode="bilinear", align_corners=False, antialias=True)
        return image.clamp(0, 1)

    def _images(self, latents: Store, ids: list[str]) -> Tensor:
        return self.to_rgb(torch.from_numpy(latents.read(ids)))

    def _images_of(self, latents: Store, samples: Sequence[Sample]) -> Tensor:
        return self._images(latents, [s.sample_id for s in samples])

    def to_x0(self, images_BCHW: Tensor) -> Tensor:
        """Images in [0,1] to latents."""
        return F.pixel_unshuffle((images_BCHW * 2 - 1) * self.settings.scale, self.settings.unshuffle)

    def to_rgb(self, x0: Tensor) -> Tensor:
        """Latents back to images [B,3,H,W] in [0,1]."""
        images = (F.pixel_shuffle(x0, self.settings.unshuffle) / self.settings.scale + 1) / 2
        return images.clamp(0, 1).expand(-1, 3, -1, -1) if self.settings.channels == 1 else images.clamp(0, 1)


def _is_complete(output: Output, samples: Samples) -> bool:
    """Whether a store is finished and has a record of every sample."""
    if not is_finished(output.folder):
        return False
    store = Store(output.folder)
    missing = store.missing(Keys([samples.filter(map(output.holds, samples))]))
    store.close()
    return not missing
