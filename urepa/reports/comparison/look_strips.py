"""Strips of the pictures that runs made during training (trainer.look_every), one for each arm: the same validation
images at several steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from urepa.core.look_sheets import Cells, cells_of, spread, strip_png
from urepa.reports.comparison.arms import ComparedArms
from urepa.reports.comparison.read_runs import Run
from urepa.reports.comparison.sample_grids import SHOWN_AT_MOST, Find, Grid, Read, open_png

STEPS = 8  # in a strip


@dataclass(frozen=True)
class Strips:
    """Strips of one seed and bucket ("" without buckets), and a sentence on the arms that have none ("" if all have
    one)."""

    seed: int
    bucket: str
    shown: tuple[Grid, ...]
    note: str


def strips_of(study: ComparedArms, find: Find, read: Read) -> Strips | None:
    """Strips of the seed with pictures that most arms have, and of the bucket that most of these have (on a tie, the
    first by name). None if no run has pictures. Only the first `SHOWN_AT_MOST` arms are shown."""
    seeds = Counter(seed for arm in study.arms for seed in arm.runs)
    for seed, _ in sorted(seeds.items(), key=lambda item: (-item[1], item[0])):
        runs = {arm.label: arm.runs[seed] for arm in study.arms if seed in arm.runs}
        runs = dict(list(runs.items())[:SHOWN_AT_MOST])
        places = {label: find(run) for label, run in runs.items()}
        buckets = Counter(bucket for found in places.values() for bucket in {bucket for _, bucket in found})
        if not buckets:
            continue
        bucket = min(buckets, key=lambda name: (-buckets[name], name))
        files = {
            label: {step: file for (step, at), file in found.items() if at == bucket} for label, found in places.items()
        }
        strips = {label: _strip(runs[label], own, read) for label, own in files.items()}
        shown = tuple(Grid(label, runs[label].name, png) for label, png in strips.items() if png is not None)
        without = [label for label, png in strips.items() if png is None]
        return Strips(seed, bucket, shown, f"No pictures: {'; '.join(without)}." if without else "") if shown else None
    return None


def _strip(run: Run, files: Mapping[int, str], read: Read) -> bytes | None:
    """The strip of a run's sheets, of at most `STEPS` steps. None if no file is a sheet."""
    sheets: dict[int, Cells] = {}
    for step in spread(list(files), STEPS):
        image = open_png(read(run, files[step]))
        cells = {} if image is None else cells_of(image)
        if cells:
            sheets[step] = cells
    return strip_png(sheets) if sheets else None
