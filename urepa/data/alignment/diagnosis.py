"""The stage `diagnose`: which of a track's token stores, or of the shards of `urepa.data.shards`, are misaligned with
their images, in a table and with pictures.

Shapes: S samples, N tokens, D width, C channels, H and W rows and columns.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from urepa.core.errors import UserError
from urepa.core.files import write_whole
from urepa.core.random_draws import unit_interval
from urepa.core.text_tables import Table
from urepa.data.alignment.picture import picture
from urepa.data.alignment.references import EncodedImages, LocalFeatures, Reference
from urepa.data.alignment.verdicts import State, Verdict, judge
from urepa.data.lists.paths import is_finished
from urepa.data.lists.samples import Keys, Samples, fixed_subset
from urepa.data.shards.layout import LATENT, PATCHES, ShardSizes, bucket_folder, image_tokens_folder
from urepa.data.shards.shard_reading import ShardSample, array_shape, list_samples
from urepa.data.sources.source_identity import Listing
from urepa.data.stages.image_archives import ImageArchive
from urepa.data.stores.record_reading import Store
from urepa.models.teachers.rectangle_sizes import Grid, grid_for, teacher_on_grid

if TYPE_CHECKING:
    from urepa.data.tracks.latent_bucket_caches import LatentBucket
    from urepa.data.tracks.latent_caches import LatentTrackCaches

SAMPLES = 32  # of each cache that are compared
MOST_VALUES = 2**28  # of the tokens that are compared: 1 GiB in float32
WIDTH = 160  # characters of a line of the table


@dataclass(frozen=True)
class Subject:
    """Tokens to judge: a store's, or those of shards with one number of tokens."""

    name: str
    kind: str  # tokens, image_tokens or shards
    folder: Path
    bucket: LatentBucket
    grid: Grid
    network: Any  # whose tokens they are said to be, built with this grid
    ids: Sequence[str]  # of the samples to compare
    tokens: Callable[[Sequence[str]], Tensor]  # [S,N,D]
    latents: Callable[[Sequence[str]], Tensor]  # [S,C,h,w]
    held: int = 0  # samples of this kind in the cache
    names: dict[str, str] = field(default_factory=dict)  # the ids of the images by sample id, where they differ


@dataclass(frozen=True)
class Result:
    """A subject with its verdict."""

    subject: Subject
    verdict: Verdict

    def row(self) -> tuple[str, ...]:
        """Name, number of samples, state, mean displacement in tokens, and the reason."""
        apart = self.verdict.apart
        moved = "" if apart is None else f"{apart:.2f}"
        return self.subject.name, str(self.subject.held), self.verdict.state.value, moved, self.verdict.text


class Diagnosis:
    """Judges the tokens of one track."""

    def __init__(
        self, track: LatentTrackCaches, teacher: Any, encoder: Any, compared_with: str, shards: Path | None
    ) -> None:
        """
        Args:
            teacher, encoder: the declarations of the networks whose tokens they are said to be: the teacher's tokens,
                and the image tokens of conditions.
            compared_with: a `urepa.config.command_schemas.ComparedWith`; with `encoder` that network is run.
            shards: the folder of shards to judge; None: the track's own stores.
        """
        self.track, self.teacher, self.encoder = track, teacher, encoder
        self.compared_with, self.shards = compared_with, shards
        self.folder = track.folder / "diagnosis"

    def run(self) -> list[Result]:
        """Judges everything, prints a table and writes it with pictures to ROOT/diagnosis. Raises UserError if there is
        nothing to judge, or nothing to compare it with."""
        subjects = list(self._of_shards(self.shards) if self.shards is not None else self._of_stores())
        if not subjects:
            raise UserError(f"there are no finished tokens at {self.track.folder} to judge; make or read them first")
        self.folder.mkdir(parents=True, exist_ok=True)
        results = []
        for subject in subjects:
            reference, images = self._reference(subject)
            tokens_SND = subject.tokens(subject.ids).float()
            verdict = judge(tokens_SND, subject.grid, subject.bucket.size, reference)
            results.append(Result(subject, verdict))
            file = self.folder / f"{subject.name.replace('/', '_').replace(' ', '_')}.png"
            write_whole(file, picture(tokens_SND.nan_to_num(0, 0, 0), subject.grid, images, reference, verdict))
        self._report(results)
        return results

    def _report(self, results: Sequence[Result]) -> None:
        headers = ("cache", "samples", "state", "tokens apart", "why")
        table = Table("", headers[:-1], tuple(result.row()[:-1] for result in results), numbers=False)
        print("\n".join(table.lines(WIDTH)))
        for result in results:
            print(f"{result.subject.name}: {result.verdict.text}")
        facts: list[dict[str, Any]] = [dict(zip(headers, result.row(), strict=True)) for result in results]
        for fact, result in zip(facts, results, strict=True):
            fact |= {"views": {f.view.name: round(f.r2, 4) for f in result.verdict.findings}}
        write_whole(self.folder / "diagnosis.json", json.dumps(facts, indent=1))
        print(f"pictures of the tokens' principal components beside the images: {self.folder}")

    # --- what is judged ---------------------------------------------------------------------------------

    def _of_stores(self) -> Iterator[Subject]:
        """The finished token stores of the buckets."""
        for bucket in self.track.buckets:
            for kind, folder, network in self._stores(bucket):
                if is_finished(folder):
                    yield self._of_store(bucket, kind, folder, network)

    def _stores(self, bucket: LatentBucket) -> Iterator[tuple[str, Path, Any]]:
        """Kind, folder and network of each possible store."""
        networks = bucket.teachers(self._built_teacher)
        for name, folder in bucket.tokens_folders(self._built_teacher).items():
            yield "tokens", folder, networks[name]
        if hasattr(self.encoder, "stored_as"):  # one encoder, not several
            network = self._image_network(bucket)
            yield "image_tokens", image_tokens_folder(bucket.folder, self.encoder, network.grid), network

    def _of_store(self, bucket: LatentBucket, kind: str, folder: Path, network: Any) -> Subject:
        store, train = Store(folder), bucket.samples()["train"]
        first = kind == "image_tokens"  # the vector before the patches
        count = min(SAMPLES, max(1, MOST_VALUES // int(np.prod(store.shape))))
        ids = [s.sample_id for s in fixed_subset(train, "diagnose", count)]
        name = f"{bucket.name}/{folder.name}" if bucket.name else folder.name

        def tokens(keys: Sequence[str]) -> Tensor:
            return store.tensor(list(keys))[:, int(first) :].float()

        def latents(keys: Sequence[str]) -> Tensor:
            x0 = Store(bucket.latents).tensor(list(keys)).float()
            return x0[:, 0] if x0.ndim == 5 else x0  # of moments, the mean

        return Subject(name, kind, folder, bucket, network.grid, network, ids, tokens, latents, len(train))

    def _of_shards(self, folder: Path) -> Iterator[Subject]:
        """The shards' samples, divided by bucket and by number of tokens."""
        sizes = ShardSizes.of(self.track.settings, self.encoder)
        samples, incomplete = list_samples(folder, sizes, self.track.settings.caption_column)
        if incomplete.samples:
            print(f"left out: {incomplete}")
        groups: dict[tuple[str, tuple[int, ...]], list[ShardSample]] = defaultdict(list)
        for sample in samples:
            groups[sample.bucket, array_shape(sample, PATCHES)].append(sample)
        for (name, shape), own in sorted(groups.items()):
            if len(shape) != 2:
                raise UserError(f"{own[0].where(PATCHES)} has {len(shape)} dimensions; give patches [N,D]")
            bucket = next(b for b in self.track.all_buckets if b.name == name)
            count = min(SAMPLES, max(1, MOST_VALUES // max(1, shape[0] * shape[1])))
            chosen = sorted(own, key=lambda s: unit_interval("diagnose", s.sample_id))[:count]
            by_id = {s.sample_id: s for s in chosen}
            place = bucket_folder(bucket.size)
            yield Subject(
                f"{place}, {shape[0]} tokens",
                "shards",
                folder,
                bucket,
                sizes.grids[name],
                self._image_network(bucket),
                list(by_id),
                lambda ids, by_id=by_id: _stacked(by_id, ids, PATCHES),  # type: ignore[misc]
                lambda ids, by_id=by_id: _stacked(by_id, ids, LATENT),  # type: ignore[misc]
                len(own),
                {s.sample_id: s.key for s in chosen},
            )

    # --- what it is compared with -----------------------------------------------------------------------

    @cached_property
    def _built_teacher(self) -> Any:
        """The built teacher; its weights are read when it is run."""
        return self.teacher.build()

    @cached_property
    def _built_encoder(self) -> Any:
        return self._built_teacher if self.encoder is self.teacher else self.encoder.build()

    def _image_network(self, bucket: LatentBucket) -> Any:
        grid = grid_for(self.encoder, bucket.size, self.track.image_size)
        return teacher_on_grid(self._built_encoder, grid)

    def _reference(self, subject: Subject) -> tuple[Reference, Tensor]:
        """The reference, and what the picture shows beside the tokens."""
        if self.compared_with == "latents":
            values = subject.latents(subject.ids).float()
            return LocalFeatures("the latents", values), values
        images_S3HW = self._images(subject)
        if self.compared_with == "images":
            return LocalFeatures("the images", images_S3HW), images_S3HW
        return EncodedImages("the encoder's tokens", images_S3HW, subject.network), images_S3HW

    def _images(self, subject: Subject) -> Tensor:
        """The samples' cut images [S,3,H,W] in [0,1]: those of the stage `images`, if it left any, or the source's."""
        bucket, ids = subject.bucket, list(subject.ids)
        if subject.kind != "shards" and (bucket.folder / "images").is_dir():
            archive = ImageArchive(bucket.folder)
            if not archive.missing(Keys([Samples.of_rows((i, 0, "", "train") for i in ids)])):
                return archive(ids)
        load = self._source
        named = [next((n for n in (i, subject.names.get(i, i)) if n in load), None) for i in ids]
        if None in named:
            missing = ids[named.index(None)]
            raise UserError(
                f"data.images={self.track.images} has no image {missing!r} to compare its tokens with; give the folder "
                "that has it, or compared_with=latents"
            )
        cut = [np.asarray(bucket.cut(load[name]())) for name in named if name is not None]
        return torch.from_numpy(np.stack(cut)).permute(0, 3, 1, 2).float() / 255

    @cached_property
    def _source(self) -> dict[str, Callable[[], np.ndarray]]:
        """Functions that read the source's images, by sample id and by the name of their file. Raises UserError if they
        are not here."""
        track = self.track
        if track.source != "hub" and not Path(track.images).is_dir():
            raise UserError(
                f"data.images={track.images} is not a folder here, so there are no images to compare tokens with; give "
                "data.images=FOLDER, or compared_with=latents"
            )
        rows = list(Listing(track.source, track.images, track.record().get("source", {})))
        return {Path(row.path).stem: row.load for row in rows} | {row.name: row.load for row in rows}


def _stacked(samples: dict[str, ShardSample], ids: Sequence[str], member: str) -> Tensor:
    return torch.from_numpy(np.stack([samples[i].array(member) for i in ids]).astype(np.float32))


def misaligned(results: Sequence[Result]) -> list[Result]:
    """Those that are."""
    return [result for result in results if result.verdict.state is State.misaligned]
