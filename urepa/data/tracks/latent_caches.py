"""Tracks of VAE latents and cached teacher tokens.

Layout below `root`: vae_latents_lmdb/ and dino_tokens_lmdb/ (key: sample id; of tokens sample id + "_mid" where the
manifest has no `key_suffix`), one CSV per split, classes.json (names), clip_embeddings_1001.pt (.json: what it was made
of), images/ (only while building), track.json (digests of the CSVs, what their images are known by, images that could
not be read); with data.flip also vae_latents_lmdb_flip/ and dino_tokens_lmdb_flip/ of the mirrored training images.
With data.online_latents or data.online_teacher images/ stays and is read in training, in the place of a cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from urepa.core.errors import UserError
from urepa.core.files import read_json
from urepa.data.cache import (
    NONE,
    Cache,
    mirrored_folder,
    open_store,
    refuse_changed,
    refuse_differing,
    refuse_faulty,
    token_stores,
)
from urepa.data.class_conditions import ClassConditions
from urepa.data.lists.classes import class_names, read_names
from urepa.data.lists.paths import no_cache_error
from urepa.data.lists.samples import Keys, Samples, read_split
from urepa.data.local_copies import stage
from urepa.data.online_encoders import ImagesOf, OnlineLatents, OnlineTokens, images_of
from urepa.data.sources import source_changes
from urepa.data.stages import vae
from urepa.data.stages.decoded_images import IMAGES, Decoder, decoder_name, read_decoded, through_latents
from urepa.data.stages.encode import prompt_facts, short_name, vae_encoder
from urepa.data.stages.image_archives import ImageArchive, skipped_ids
from urepa.data.stages.vae_config import known_scaling, refuse_other_scaling
from urepa.data.stores.record_reading import Store
from urepa.models.teachers.several_teachers import by_name

if TYPE_CHECKING:
    from urepa.data.tracks.latent_track import LatentTrack


class LatentTrackCaches:
    """What a track is made of and where it lies."""

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
        self.latents, self.tokens = self.folder / settings.latents, self.folder / settings.tokens
        self.csv = settings.lists
        self.prompts = self.folder / settings.prompts
        self.prompt_record = self.prompts.with_suffix(".json")
        channels, height, width = settings.latent_shape
        self.latent_shape = (channels, height, width)
        self.num_classes = settings.num_classes
        self.conditions = ClassConditions.withheld_with(settings.cfg_dropout)
        self.flip, self.stage_to = settings.flip, settings.stage_to
        self.online_teacher, self.online_latents = settings.online_teacher, settings.online_latents
        self.teacher_sees, self.tae = settings.sees, settings.tae
        self.remake = settings.remake
        self.image_shape = (3, self.image_size, self.image_size)
        self.latent_shapes, self.image_shapes = [self.latent_shape], [self.image_shape]

    @property
    def prompt_bytes(self) -> int:
        """Of a class: SD-1.5's text embedding in fp16, where there is one."""
        return 0 if self.text is None else 77 * 768 * 2

    def record_shape(self) -> list[int]:
        """Of a latents record: [C,H,W], or [2,C,H,W] with moments."""
        return [2, *self.latent_shape] if self.moments else list(self.latent_shape)

    def reads_squares(self, teacher: Any | None) -> bool:
        """Are the images stage's squares read in training?"""
        sees_them = self.online_teacher and self.teacher_sees == IMAGES
        return self.online_latents or (teacher is not None and sees_them)

    def expected_samples(self) -> dict[str, int]:
        """How many samples the splits have or will have."""
        if all(path.exists() for path in self.csv.values()):
            return {split: len(samples) for split, samples in self.samples().items()}
        return self.settings.wanted_samples()

    def stores(self, teacher: Any | None) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and type of each cache's records."""
        stores: dict[str, tuple[tuple[int, ...], str]] = {}
        if not self.online_latents:
            stores["latents"] = (tuple(self.record_shape()), "float16")
        return stores | ({} if self.online_teacher else token_stores(by_name(teacher), self.token_dtype))

    def tokens_folders(self, teacher: Any | None) -> dict[str, Path]:
        """Where each teacher's tokens lie, if they are kept: in `data.tokens`, with several in `data.tokens`.NAME."""
        names = () if self.online_teacher else by_name(teacher)
        return {
            name: self.tokens.with_name(f"{self.tokens.name}.{name}" if name else self.tokens.name) for name in names
        }

    def store_folders(self, teacher: Any | None) -> list[Path]:
        """The folders of what is cached."""
        plain = [*([] if self.online_latents else [self.latents]), *self.tokens_folders(teacher).values()]
        return plain + ([mirrored_folder(path) for path in plain] if self.flip else [])

    def has_caches(self, teacher: Any | None) -> bool:
        """Is everything cached that training reads? What is asked online cannot be compared."""
        online = self.online_latents or (teacher is not None and self.online_teacher)
        needed = [*self.csv.values(), *(path / "manifest.json" for path in self.store_folders(teacher))]
        return not online and all(path.exists() for path in needed)

    def source_changes(self) -> str | None:
        """In what the images are not those that the lists were chosen from; None where they are, or nobody can say."""
        return source_changes.changes(self.source, self.images, self.folder)

    def open(self, teacher: Any | None) -> Cache:
        """The track's caches, and what is asked in training in their place; a UserError where something is missing,
        was made for another teacher or size, did not pass `verify`, or has changed since."""
        needed = self.store_folders(teacher)
        self._require(needed)
        for path in needed:
            refuse_faulty(path)
        return self._open_caches(teacher, self.stage_to, NONE)

    def open_to_verify(self, teacher: Any | None, manifests: Mapping[Path, dict[str, Any]] = NONE) -> Cache:
        """The same where they were made, with stores that did not pass `verify` before. `manifests` stand in for those
        of folders that are being adopted."""
        self.require_folders(teacher)
        return self._open_caches(teacher, None, manifests)

    def require_folders(self, teacher: Any | None) -> None:
        """A UserError where a list or a cache is not there."""
        self._require(self.store_folders(teacher))

    def _require(self, needed: list[Path]) -> None:
        for path in [*self.csv.values(), *needed]:
            if not path.exists():
                raise no_cache_error(path, self.remake)

    def _open_caches(
        self, teacher: Any | None, stage_to: str | None, manifests: Mapping[Path, dict[str, Any]]
    ) -> Cache:
        splits, teachers = self.samples(), by_name(teacher)
        self.refuse_other_prompts()
        archive = self._archive(splits) if self.reads_squares(teacher) else None
        places = {} if stage_to is None else stage(self.store_folders(teacher), self.folder, Path(stage_to))
        opened = partial(self._store, places, manifests, splits)
        latents: Store | OnlineLatents
        if self.online_latents:
            assert archive is not None
            latents = self._open_online_latents(archive, splits)
        else:
            shape = {"shape": self.record_shape(), "flip": "none"}
            latents = opened(self.latents, shape | self._image_facts())
            if "vae" in latents.manifest:  # an adopted store does not know
                scaling = known_scaling(self.vae)
                facts = {"vae": short_name(self.vae)} | ({} if scaling is None else scaling.facts())
                refuse_differing(self.latents, latents.manifest, facts, self.remake)
        tokens: dict[str, Store | OnlineTokens] = {
            name: opened(folder, {"teacher": teachers[name].manifest() | self.seen_facts()})
            for name, folder in self.tokens_folders(teacher).items()
        }
        if self.online_teacher and teachers:
            shown = self._shown_online(latents, archive)
            known_ids, facts = splits["train"].ids(), self.seen_facts()
            tokens = {name: OnlineTokens(one, shown, known_ids, facts) for name, one in teachers.items()}
        grids = {name: one.grid for name, one in teachers.items()}
        names = [] if self.class_names is not None else read_names(self.folder, self.num_classes)
        known: dict[str, Any] = {"images": archive, "class_names": names}
        return Cache(splits, latents, tokens, grids, self.num_classes, self.conditions, **known)

    # --- what the teacher sees ---------------------------------------------------------------------------

    def seen_facts(self) -> dict[str, Any]:
        """What the manifest of its tokens says of it beside the teacher's own; of images nothing, as ever."""
        if self.teacher_sees == IMAGES:
            return {}
        return {"sees": self.teacher_sees, "decoder": decoder_name(self.vae, self.tae)}

    def _decoder(self) -> Decoder:
        """A UserError where its weights are not to be had, or are for other latents."""
        return Decoder(self.teacher_sees, self.vae, self.tae, self.latent_shape[0])

    def show_to_teachers(self) -> Callable[[Tensor], Tensor] | None:
        """What the tokens stage makes of images for a teacher; None: nothing, it sees them."""
        if self.teacher_sees == IMAGES:
            return None
        encode, _ = vae_encoder(self.vae, moments=False)
        return through_latents(encode, self._decoder())

    def _shown_online(self, latents: Store | OnlineLatents, archive: ImageArchive | None) -> ImagesOf:
        """What teachers that are asked while training see of records, by their keys."""
        if self.teacher_sees != IMAGES:
            return read_decoded(latents, self._decoder())
        assert archive is not None
        return partial(images_of, read=archive)

    def refuse_other_prompts(self) -> None:
        """A UserError where the prompts are of another text encoder or other names, if that was written down."""
        if self.text is not None and self.class_names is not None and self.prompt_record.is_file():
            known = read_json(self.prompt_record)
            refuse_differing(self.prompts, known, prompt_facts(self.text, class_names(self.class_names)), self.remake)

    def _image_facts(self) -> dict[str, Any]:
        """The manifest's entries about the images, the same for latents and tokens."""
        return {"image_size": self.image_size, "crop": "center"}

    def _archive(self, splits: dict[str, Samples]) -> ImageArchive:
        """Every sample's square, of this size."""
        mark = self.folder / "images" / "begun.json"
        if not mark.is_file():
            raise UserError(f"there are no images at {mark.parent}; {self.remake}, or give data.root=FOLDER")
        refuse_differing(mark.parent, read_json(mark), self._image_facts(), self.remake)
        archive, ids = ImageArchive(self.folder), Keys(splits.values())
        if missing := archive.missing(ids):
            raise UserError(
                f"{mark.parent} lacks {len(missing)} of {len(ids)} images (first: '{min(missing)}'); {self.remake}"
            )
        return archive

    def _open_online_latents(self, archive: ImageArchive, splits: dict[str, Samples]) -> OnlineLatents:
        """Latents computed by the VAE during training. Encodes one image at once, so a mismatch is found before the
        first step."""
        encode, facts = vae_encoder(self.vae, self.moments)
        facts |= self._image_facts() | {"shape": self.record_shape()}
        latents = OnlineLatents(encode, archive.pixels, facts, self.folder / "images" / "begun.json", self.flip)
        self.require_shape(latents.tensor([splits["train"][0].sample_id]).shape[-3:])
        return latents

    def require_shape(self, encoded: Sequence[int]) -> None:
        """A UserError where the VAE makes latents of another shape than `data.latent_shape`."""
        if tuple(encoded) != self.latent_shape:
            raise UserError(
                f"data.vae={self.vae} makes latents of {list(encoded)} of these images; data.latent_shape="
                f"{list(self.latent_shape)}"
            )

    @cached_property
    def autoencoder(self) -> Any:
        """The VAE between images and latents; a UserError where its weights are not to be had, or where the latents
        that lie here are a VAE's of this name with other constants."""
        loaded, file = vae.load_vae(self.vae), self.latents / "manifest.json"
        if file.is_file() and (manifest := read_json(file)).get("vae") == short_name(self.vae):
            refuse_other_scaling(self.latents, manifest, vae.scaling_of(loaded), self.vae)
        return loaded

    def to_rgb(self, x0: Tensor) -> Tensor:
        """Latents to images [B,3,S,S] in [0,1]."""
        return vae.decode(self.autoencoder.to(x0.device), x0)

    def to_x0(self, images_B3SS: Tensor) -> Tensor:
        """Images in [0,1] to latents, as the latents stage makes them."""
        return vae.encode(self.autoencoder.to(images_B3SS.device), images_B3SS)

    def _store(
        self,
        places: dict[Path, Path],
        manifests: Mapping[Path, dict[str, Any]],
        splits: dict[str, Samples],
        folder: Path,
        expected: dict[str, Any],
    ) -> Store:
        """A store of every sample and, with flips, its mirror of the training samples; `places`: copies."""
        keys, mirrored = Keys(splits.values()), Keys([splits["train"]]) if self.flip else None
        return open_store(places.get(folder, folder), expected, keys, self.remake, mirrored, manifests)

    def record(self) -> dict[str, Any]:
        """track.json: digests of the CSVs, what their images are known by, images that could not be read."""
        file = self.folder / "track.json"
        return read_json(file) if file.exists() else {}

    def samples(self) -> dict[str, Samples]:
        """The splits, less what has no image; a UserError if a CSV is not the one the caches were made from."""
        known = self.record()
        refuse_changed(list(self.csv.values()), known.get("csv_sha256", {}), self.remake)
        skipped = skipped_ids(self.folder).union(known.get("skipped", []))
        splits = {split: read_split(path) for split, path in self.csv.items()}
        for split, rows in splits.items():
            largest = int(rows.class_ids().max(initial=0))
            if largest >= self.num_classes:
                raise UserError(f"{self.csv[split]} has a class {largest}; data.num_classes={self.num_classes}")
        return {split: rows.filter(i not in skipped for i in rows.ids()) for split, rows in splits.items()}
