"""The arms' sample grids side by side, all of one seed, one step and, if images have several shapes, one bucket. With
the same seed, the images of every arm begin with the same noise."""

from __future__ import annotations

import io
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from urepa.reports.comparison.arms import ComparedArms
from urepa.reports.comparison.read_runs import Run

FOLDER, BUCKETS = "samples", "buckets"  # RUN/samples, or RUN/buckets/HxW/samples
NAME = re.compile(r"step_(\d+)\.png")
SHOWN_AT_MOST = 12  # grids
LARGEST = 640  # pixels of a grid's longer side in the report; larger grids are scaled down
MOST_BYTES = 50_000_000  # largest file that is opened; Pillow limits the number of pixels

Place = tuple[int, str]  # a step and the name of a bucket ("" without buckets)
Find = Callable[[Run], dict[Place, str]]  # returns the locations of a run's grids
List = Callable[[Run, str], list[str]]  # returns the files in a run's folders of this name
Read = Callable[[Run, str], bytes]  # returns the content of such a file


@dataclass(frozen=True)
class Grid:
    """An arm's grid as a re-encoded PNG."""

    label: str
    run: str
    png: bytes


@dataclass(frozen=True)
class Grids:
    """Grids of one seed, step and bucket ("" without buckets), and a sentence on the arms that have none ("" if all
    have one)."""

    seed: int
    step: int
    bucket: str
    shown: tuple[Grid, ...]
    note: str


def find_in_folder(run: Run, kind: str = FOLDER) -> dict[Place, str]:
    """The locations of the pictures of a run that is a folder, in its folders called `kind`."""
    return by_place(list_in_folder(run, kind))


def list_in_folder(run: Run, kind: str) -> list[str]:
    """The PNGs of a run that is a folder, in its folders called `kind`."""
    return [str(path) for below in (kind, f"{BUCKETS}/*/{kind}") for path in Path(run.id).glob(f"{below}/*.png")]


def read_file(run: Run, place: str) -> bytes:
    """The file's content, at most as many bytes as a grid may have."""
    with open(place, "rb") as file:
        return file.read(MOST_BYTES + 1)


def by_place(files: Iterable[str]) -> dict[Place, str]:
    """The files named `step_<number>.png`, by their number and the bucket of their folder."""
    found = ((NAME.fullmatch(Path(file).name), file) for file in files)
    return {(int(match[1]), bucket_of(file)): file for match, file in found if match}


def bucket_of(file: str) -> str:
    """The bucket in RUN/buckets/HxW/samples/FILE; "" for other paths."""
    folder = Path(file).parent.parent
    return folder.name if folder.parent.name == BUCKETS else ""


def grids_of(study: ComparedArms, find: Find, read: Read) -> Grids | None:
    """Grids of the seed with grids that most arms have, of the last step that most of these arms have, and of the
    bucket that most have at this step (on a tie, the first by name). None if there is no grid. Only the first
    `SHOWN_AT_MOST` arms are shown."""
    seeds = Counter(seed for arm in study.arms for seed in arm.runs)
    for seed, _ in sorted(seeds.items(), key=lambda item: (-item[1], item[0])):
        runs = {arm.label: arm.runs[seed] for arm in study.arms if seed in arm.runs}
        runs = dict(list(runs.items())[:SHOWN_AT_MOST])
        places = {label: find(run) for label, run in runs.items()}
        steps = Counter(step for found in places.values() for step in {step for step, _ in found})
        if steps:
            step = max(steps, key=lambda s: (steps[s], s))
            buckets = Counter(bucket for found in places.values() for at, bucket in found if at == step)
            place = step, min(buckets, key=lambda name: (-buckets[name], name))
            there = {label: read(runs[label], found[place]) for label, found in places.items() if place in found}
            pngs = {label: png for label, content in there.items() if (png := small_png(content)) is not None}
            shown = tuple(Grid(label, runs[label].name, png) for label, png in pngs.items())
            unreadable = [label for label in there if label not in pngs]
            without = [label for label in places if label not in there]
            return Grids(seed, *place, shown, _note(study, without, unreadable))
    return None


def _note(study: ComparedArms, without: list[str], unreadable: list[str]) -> str:
    said = [f"Shown are the grids of the first {SHOWN_AT_MOST} of {len(study.arms)} arms."] * (
        len(study.arms) > SHOWN_AT_MOST
    )
    said += [f"No grid of this step: {'; '.join(without)}."] * bool(without)
    said += [f"Unreadable image files: {'; '.join(unreadable)}."] * bool(unreadable)
    return " ".join(said)


def small_png(content: bytes) -> bytes | None:
    """A re-encoded PNG of at most `LARGEST` pixels per side, so that only the file's pixels enter the report. None if
    the file is not an image or too large to be opened."""
    from PIL import Image

    image = open_png(content)
    if image is None:
        return None
    pixels = image.convert("RGB")
    pixels.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    png = io.BytesIO()
    pixels.save(png, format="PNG")
    return png.getvalue()


def open_png(content: bytes) -> Any:
    """A PNG as an image whose pixels are read, with the texts in the file. None if the file is not an image or too
    large to be opened."""
    from PIL import Image, UnidentifiedImageError

    if len(content) > MOST_BYTES:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content), formats=["PNG"])
            image.load()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError, Warning):
        return None
    return image
