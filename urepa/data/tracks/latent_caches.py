"""Tracks of VAE latents and cached teacher tokens.

Layout below `root`: one CSV per split, classes.json (names), track.json (digests of the CSVs, the identity of their
images, images that could not be read), vae_latents_lmdb/ and dino_tokens_lmdb/ (key: sample id; for tokens sample id +
"_mid" if the manifest has no `key_suffix`), and images/ (only while building). With data.flip there are also
vae_latents_lmdb_flip/ and dino_tokens_lmdb_flip/ with the mirrored training images. With data.online_latents or
data.online_teacher images/ is kept, and training reads it instead of a cache.

With data.buckets buckets.json has the number of samples in each bucket; the latents, tokens and images of each are in a
folder HxW, with lists and a track.json of its own.

Conditions: clip_embeddings_1001.pt (.json: what it was made from), or with data.captions the files of `caption_caches`.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from urepa.core.files import read_json
from urepa.core.track_protocols import ConditionMaker
from urepa.data.bucketed_cache import Caches, caches_of
from urepa.data.cache import NONE, refuse_differing, refuse_faulty
from urepa.data.lists.bucket_shapes import BUCKETS
from urepa.data.lists.classes import class_names, read_names
from urepa.data.lists.paths import no_cache_error, no_list_error
from urepa.data.lists.samples import Samples, read_split
from urepa.data.local_copies import stage
from urepa.data.own_image_conditions import conditions_without_text
from urepa.data.sources import source_changes
from urepa.data.sources.decoding import rectangle, square
from urepa.data.stages import vae
from urepa.data.stages.decoded_images import TeacherView
from urepa.data.stages.encode import prompt_facts, short_name
from urepa.data.stages.vae_config import refuse_other_scaling
from urepa.data.text_and_image_conditions import TextAndImageConditions, with_text
from urepa.data.tracks.caption_caches import CaptionCaches
from urepa.data.tracks.image_token_caches import text_and_image_conditions
from urepa.data.tracks.latent_bucket_caches import LatentBucket, Opened
from urepa.data.whitening import whitened

if TYPE_CHECKING:
    from urepa.data.tracks.latent_track import LatentTrack


class LatentTrackCaches:
    """Opens a latent track's caches and gives their paths."""

    build_on_first_use = False  # `urepa.preprocess` makes the caches

    def __init__(self, settings: LatentTrack) -> None:
        settings.check()
        self.settings = settings
        self.name, self.folder = settings.name, settings.folder
        self.source, self.images, self.image_size = str(settings.source), settings.images, settings.image_size
        self.wanted = settings.wanted
        self.vae, self.text, self.class_names = settings.vae, settings.text, settings.class_names
        self.moments, self.token_dtype = settings.moments, str(settings.token_dtype)
        self.max_skipped = settings.max_skipped
        self.csv = settings.lists
        self.prompts = self.folder / settings.prompts
        self.prompt_record = self.prompts.with_suffix(".json")
        self.num_classes = settings.num_classes
        self.flip, self.stage_to = settings.flip, settings.stage_to
        self.online_teacher, self.online_latents = settings.online_teacher, settings.online_latents
        self.online_text = settings.online_text
        self.teacher_sees, self.tae = settings.sees, settings.tae
        self.view = TeacherView(settings.sees, settings.vae, settings.tae, settings.latent_shape[0])
        self.remake = settings.remake
        self.captions = None if settings.text_encoder is None else CaptionCaches(settings, self.remake)
        self.conditions: ConditionMaker = self._conditions()
        self.condition_widths = settings.condition_widths
        self.all_buckets = [LatentBucket(settings, name, size, self.view) for name, size in settings.sizes.items()]
        self._autoencoders: list[Any] = []  # holds the VAE once it is loaded; shared with the tracks of `of_bucket`
        self._set_shapes()

    def _conditions(self) -> ConditionMaker:
        """The conditions before the caches are opened."""
        if self.captions is None:
            return conditions_without_text(self.settings)
        if self.settings.image_encoder is None:
            return self.captions.conditions
        return text_and_image_conditions(self.settings, self.captions.conditions, self._image_folders)

    def _image_folders(self) -> list[Path]:
        """The folders of the image tokens of all buckets with images."""
        return [bucket.image_tokens.folder for bucket in self.buckets if bucket.image_tokens is not None]

    def _set_shapes(self) -> None:
        self.image_shapes = [bucket.image_shape for bucket in self.all_buckets]
        self.latent_shapes = [bucket.latent_shape for bucket in self.all_buckets]
        self.image_shape, self.latent_shape = self.image_shapes[0], self.latent_shapes[0]

    # --- what is there ----------------------------------------------------------------------------------

    @property
    def buckets(self) -> list[LatentBucket]:
        """The buckets with images; all of them while there are no lists."""
        known = self.settings.bucket_counts()
        return [bucket for bucket in self.all_buckets if known is None or bucket.name in known]

    def bucket_samples(self) -> dict[str, dict[str, int]] | None:
        """The number of samples per split of each bucket, by its name; None without lists, or with a single bucket."""
        return self.settings.bucket_samples()

    def of_bucket(self, name: str) -> LatentTrackCaches:
        """A view of the track with one of its buckets, for code that handles one shape at a time."""
        (bucket,) = (bucket for bucket in self.all_buckets if bucket.name == name)
        return self._with(bucket)

    def of_size(self, size: tuple[int, int]) -> LatentTrackCaches:
        """A view of the track for images of these rows and columns in pixels, without caches."""
        return self._with(LatentBucket(self.settings, f"{size[0]}x{size[1]}", size, self.view))

    def _with(self, bucket: LatentBucket) -> LatentTrackCaches:
        track = copy(self)
        track.all_buckets = [bucket]
        if isinstance(self.conditions, TextAndImageConditions):
            track.conditions = self.conditions.of_size(bucket.size)
        track._set_shapes()
        return track

    def teachers(self, teacher: Any | None) -> dict[str, Any]:
        """The teachers by name, each for images of the first bucket's shape."""
        return self.buckets[0].teachers(teacher)

    @property
    def prompt_bytes(self) -> int:
        """The bytes of a class's text embedding for SD-1.5, in fp16; 0 without one."""
        return 0 if self.text is None else 77 * 768 * 2

    def caption_records(self) -> tuple[int, int] | None:
        """The number of the captions' records, before or after they are made, and the bytes of one; None without
        captions."""
        return None if self.captions is None else self.captions.expected_records(self.expected_samples())

    def reads_squares(self, teacher: Any | None) -> bool:
        """Whether training reads the images of the images stage."""
        sees_them = self.online_teacher and not self.view.is_decoded
        return self.online_latents or (teacher is not None and sees_them)

    def expected_samples(self) -> dict[str, int]:
        """The number of samples in each split, before or after the lists are made."""
        if not all(path.exists() for path in self.csv.values()):
            return self.settings.wanted_samples()
        if self.settings.buckets is not None and self.settings.bucket_counts() is None:
            return {split: len(read_split(path)) for split, path in self.csv.items()}
        return {split: len(samples) for split, samples in self.samples().items()}

    def stores(self, teacher: Any | None) -> dict[str, tuple[tuple[int, ...], str]]:
        """The shape and data type of each cache's records, in the first bucket."""
        return self.buckets[0].stores(teacher)

    def tokens_folders(self, teacher: Any | None) -> dict[str, Path]:
        """The folder of each teacher's tokens in the first bucket, if they are cached."""
        return self.buckets[0].tokens_folders(teacher)

    def store_folders(self, teacher: Any | None) -> list[Path]:
        """The folders of all caches."""
        return [path for bucket in self.buckets for path in bucket.store_folders(teacher)] + self.settings.text_folders

    def has_caches(self, teacher: Any | None) -> bool:
        """Whether everything that training reads is cached; False with online latents, captions or teacher."""
        online = self.online_latents or self.online_text or (teacher is not None and self.online_teacher)
        needed = [*self.csv.values(), *(path / "manifest.json" for path in self.store_folders(teacher))]
        has_lists = self.settings.buckets is None or self.settings.bucket_counts() is not None
        return not online and has_lists and all(path.exists() for path in needed)

    def source_changes(self) -> str | None:
        """How the images differ from those that the lists were chosen from, as text; None if they do not, or if it
        cannot be told."""
        changed = source_changes.changes(self.source, self.images, self.folder)
        return changed if changed is not None or self.captions is None else self.captions.changes()

    def record(self) -> dict[str, Any]:
        """track.json: digests of the CSVs, the identity of their images, and images that could not be read."""
        file = self.folder / "track.json"
        return read_json(file) if file.exists() else {}

    def samples(self) -> dict[str, Samples]:
        """The splits, without samples that have no image. Raises UserError if a CSV is not the one that the caches were
        made from."""
        self.require_bucket_lists()
        found = [bucket.samples() for bucket in self.buckets]
        return found[0] if len(found) == 1 else {s: Samples.concatenate(own[s] for own in found) for s in found[0]}

    def require_bucket_lists(self) -> None:
        """Raises UserError if the buckets' lists do not exist."""
        if self.settings.buckets is not None and self.settings.bucket_counts() is None:
            raise no_list_error(self.folder / BUCKETS)

    # --- opening ----------------------------------------------------------------------------------------

    def open(self, teacher: Any | None) -> Caches:
        """Opens the track's caches, and the networks that replace them during training. Raises UserError if a cache is
        missing, was made for another teacher or size, did not pass `verify`, or has changed since."""
        needed = self.store_folders(teacher)
        self._require(needed)
        for path in needed:
            refuse_faulty(path)
        return self._open_caches(teacher, self.stage_to, NONE)

    def open_to_verify(self, teacher: Any | None, manifests: Mapping[Path, dict[str, Any]] = NONE) -> Caches:
        """As `open`, but reads the original stores, not copies, and also those that did not pass `verify` before.
        `manifests` replace the manifest files of folders that are being adopted."""
        self.require_folders(teacher)
        return self._open_caches(teacher, None, manifests)

    def require_folders(self, teacher: Any | None) -> None:
        """Raises UserError if a list or a cache is missing."""
        self._require(self.store_folders(teacher))

    def _require(self, needed: list[Path]) -> None:
        for path in [*self.csv.values(), *needed, *self.settings.text_places]:
            if not path.exists():
                raise no_cache_error(path, self.remake)
        self.require_bucket_lists()

    def _open_caches(
        self, teacher: Any | None, stage_to: str | None, manifests: Mapping[Path, dict[str, Any]]
    ) -> Caches:
        buckets = self.buckets
        splits = [bucket.samples() for bucket in buckets]
        self.refuse_other_prompts()
        reads = self.reads_squares(teacher)
        archives = [bucket.archive(own) if reads else None for bucket, own in zip(buckets, splits, strict=True)]
        places = {} if stage_to is None else stage(self.store_folders(teacher), self.folder, Path(stage_to))
        names = [] if self.class_names is not None else read_names(self.folder, self.num_classes)
        conditions = self.conditions
        if self.captions is not None:
            listed = Samples.concatenate(samples for own in splits for samples in own.values())
            conditions = with_text(conditions, self.captions.open(listed, places.get(self.captions.folder)))
        known = Opened(conditions, names, places, manifests)
        caches = caches_of(
            [
                bucket.open(teacher, own, archive, known)
                for bucket, own, archive in zip(buckets, splits, archives, strict=True)
            ]
        )
        return whitened(caches, teacher, self.tokens_folders(teacher))

    def refuse_other_prompts(self) -> None:
        """Raises UserError if the prompts' record names another text encoder or other class names."""
        if self.text is not None and self.class_names is not None and self.prompt_record.is_file():
            known = read_json(self.prompt_record)
            refuse_differing(self.prompts, known, prompt_facts(self.text, class_names(self.class_names)), self.remake)

    # --- images -----------------------------------------------------------------------------------------

    @property
    def autoencoder(self) -> Any:
        """The VAE between images and latents. Raises UserError if its weights cannot be loaded, or if the track's
        latents were made by a VAE of this name with other constants."""
        if not self._autoencoders:
            loaded, latents = vae.load_vae(self.vae), self.buckets[0].latents
            file = latents / "manifest.json"
            if file.is_file() and (manifest := read_json(file)).get("vae") == short_name(self.vae):
                refuse_other_scaling(latents, manifest, vae.scaling_of(loaded), self.vae)
            self._autoencoders.append(loaded)
        return self._autoencoders[0]

    def cut(self, pixels_HW3: np.ndarray) -> Tensor:
        """Cuts an image (uint8, RGB) as the track cuts its own: [3,H,W] in [0,1]."""
        bucket = self.all_buckets[0]
        size = bucket.image_shape[1:]
        image = square(pixels_HW3, self.image_size) if not bucket.name else rectangle(pixels_HW3, size)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255

    def to_rgb(self, x0: Tensor) -> Tensor:
        """Latents to images [B,3,H,W] in [0,1]."""
        return vae.decode(self.autoencoder.to(x0.device), x0)

    def to_x0(self, images_B3HW: Tensor) -> Tensor:
        """Images in [0,1] to latents, as the latents stage makes them."""
        return vae.encode(self.autoencoder.to(images_B3HW.device), images_B3HW)
