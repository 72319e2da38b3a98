"""The stages of a latent track beside those that make its caches: reading and writing shards of latents, image tokens
and captions, statistics of its latents, and which of its tokens are misaligned."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from urepa.core.errors import UserError
from urepa.core.files import set_aside
from urepa.data.alignment.diagnosis import Diagnosis, Result, misaligned
from urepa.data.shards.from_stores import SHARD_SIZE, ShardExport
from urepa.data.shards.into_stores import ShardImport
from urepa.data.stages.build import Build
from urepa.data.stages.latent_statistics import write_statistics
from urepa.data.stores.lmdb_store import Part


@dataclass(frozen=True)
class Exchange:
    """A declared latent track and what the stages are given."""

    track: Any  # the declaration
    teacher: Any  # the declaration of the encoder whose tokens are cached, and that of conditions' images
    webdataset: str | None
    shard_size: int | None
    compared_with: str | None  # None: the encoder
    batch_size: int

    def run(self, stage: str) -> None:
        """Runs one of `urepa.config.command_schemas.BESIDE`."""
        self.track.check()
        getattr(self, f"stage_{stage}")()

    @property
    def encoder(self) -> Any:
        """The declaration of the encoder of conditions' images."""
        return getattr(self.track, "image_encoder", None) or self.teacher

    @property
    def folder(self) -> Path:
        assert self.webdataset is not None, "checked before"
        return Path(self.webdataset)

    def stage_read_shards(self) -> None:
        """Fills the caches from shards."""
        ShardImport(self.track.build(), self.encoder, self.folder).run()

    def stage_write_shards(self) -> None:
        """Writes the caches as shards."""
        size = SHARD_SIZE if self.shard_size is None else self.shard_size
        ShardExport(self.track.build(), self.encoder, self.folder, size).run()

    def stage_statistics(self) -> None:
        """Writes the statistics of the latents."""
        write_statistics(self.track.build())

    def _diagnose(self) -> list[Result]:
        shards = None if self.webdataset is None else self.folder
        return Diagnosis(self.track.build(), self.teacher, self.encoder, self.compared_with or "encoder", shards).run()

    def stage_diagnose(self) -> None:
        """Judges the tokens. Raises UserError if some are misaligned."""
        found = self._diagnose()
        if wrong := misaligned(found):
            raise UserError(
                f"{len(wrong)} of {len(found)} caches are misaligned (first: {wrong[0].subject.name}: "
                f"{wrong[0].verdict.text}); stage=repair with the same settings sets them aside and makes them again"
            )

    def stage_repair(self) -> None:
        """Sets misaligned caches aside and makes them again, then judges them once more."""
        wrong = misaligned(self._diagnose())
        if not wrong:
            print("nothing is misaligned, so nothing was changed")
            return
        if self.webdataset is not None:
            buckets = {result.subject.bucket.name for result in wrong}
            ShardExport(self.track.build(), self.encoder, self.folder, self.shard_size or SHARD_SIZE).replace(buckets)
        else:
            self._remake(wrong)
        self.stage_diagnose()

    def _remake(self, wrong: list[Result]) -> None:
        """Sets the stores aside and runs their stages again, after the images are there."""
        build = Build(self.track.build(), self.teacher.build(), Part(), self.batch_size)
        stages = {result.subject.kind: getattr(build, f"stage_{result.subject.kind}", None) for result in wrong}
        if any(stages.values()):
            build.run("images")
        for result in wrong:
            print(f"set aside: {set_aside(result.subject.folder)}")
        for kind, stage in stages.items():
            if stage is None:
                raise UserError(
                    f"there is no stage that makes {kind}; read them from right shards into a new data.root"
                )
            stage()
