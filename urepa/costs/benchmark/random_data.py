"""Random records in place of an experiment's data, in the stores that it would have. Only for timing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from urepa.core.conditions import CLASS
from urepa.core.errors import UserError
from urepa.core.teacher_names import ALONE
from urepa.data.cache import Cache, mean_token_file
from urepa.data.class_conditions import ClassConditions
from urepa.data.lists.samples import Samples
from urepa.data.online_encoders import OnlineTokens
from urepa.data.stores.bucket_views import bucket_views, teachers_of
from urepa.data.stores.lmdb_store import write_store
from urepa.data.stores.record_reading import Store
from urepa.models.teachers.several_teachers import SeveralTeachers


class SyntheticTrack:
    """`records` random fp16 latents and tokens below `root`, of one shape. The same ones serve training and validation.
    `grid` is that of the tokens where it is not the teacher's own."""

    build_on_first_use = False

    def __init__(
        self,
        root: str,
        records: int,
        latent_shape: list[int],
        num_classes: int,
        cfg_dropout: float,
        grid: list[int] | None = None,
    ) -> None:
        self.folder, self.records, self.grid = Path(root), records, grid
        self.latent_shape = (latent_shape[0], latent_shape[1], latent_shape[2])
        self.num_classes, self.conditions = num_classes, ClassConditions.withheld_with(cfg_dropout)
        self.samples = Samples.of_rows((f"n{i:08d}", i % num_classes, "", "train") for i in range(records))

    def build(self) -> SyntheticTrack:
        """Returns itself: a config names this class in place of a track's declaration."""
        return self

    @property
    def latents(self) -> Path:
        """The path of the latents' store."""
        return self.folder / "latents"

    @property
    def tokens(self) -> Path:
        """The path of the tokens' store."""
        return self.folder / "tokens"

    def write(self, teacher: Any | None) -> None:
        """Writes the stores."""
        self._write(self.latents, self.latent_shape)
        if isinstance(teacher, SeveralTeachers):
            raise UserError("urepa.bench times a step with one teacher: give teacher=NAME")
        if teacher is not None:
            rows, columns = self.grid_of(teacher)
            self._write(self.tokens, (rows * columns, teacher.width))

    def grid_of(self, teacher: Any) -> tuple[int, int]:
        """Rows and columns of the tokens."""
        rows, columns = teacher.grid if self.grid is None else self.grid
        return rows, columns

    def open(self, teacher: Any | None) -> Cache:
        """Opens the stores like any track's."""
        tokens: dict[str, Store | OnlineTokens] = {} if teacher is None else {ALONE: Store(self.tokens)}
        splits = dict.fromkeys(("train", "val", "test"), self.samples)
        grids = {} if teacher is None else {ALONE: self.grid_of(teacher)}
        return Cache(splits, Store(self.latents), tokens, grids, self.num_classes, self.conditions)

    def _write(self, store: Path, shape: tuple[int, ...]) -> None:
        rng = np.random.default_rng(0)
        records = ((s.sample_id, rng.standard_normal(shape, dtype=np.float32)) for s in self.samples)
        write_store(store, records, {}, lambda: mean_token_file(np.ones(shape[-1])))


def largest_bucket(track: Any) -> tuple[str, Any]:
    """The name and view of the bucket with the largest x0, among those that a track has or may have; for a track of one
    shape, the track itself."""
    return max(bucket_views(track).items(), key=lambda item: math.prod(item[1].latent_shape))


def settings_like(track: Any, root: Path, records: int, teacher: Any | None = None) -> dict[str, Any]:
    """Settings of a SyntheticTrack with a track's shapes and classes; with several shapes, the largest."""
    _, view = largest_bucket(track)
    grids = [one.grid for one in teachers_of(view, teacher).values()]
    return {
        "root": str(root),
        "records": records,
        "latent_shape": list(view.latent_shape),
        "grid": list(grids[0]) if len(grids) == 1 else None,
        "num_classes": track.num_classes,
        "cfg_dropout": track.conditions.dropout[CLASS],
    }
