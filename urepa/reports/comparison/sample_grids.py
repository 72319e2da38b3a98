"""The arms' grids of samples side by side: of one seed, whose images begin with the same noise in every arm, and of one
step."""

from __future__ import annotations

import io
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from urepa.reports.comparison.arms import ComparedArms
from urepa.reports.comparison.read_runs import Run

FOLDER = "samples"
NAME = re.compile(r"step_(\d+)\.png")
SHOWN_AT_MOST = 12  # grids
LARGEST = 640  # pixels of a grid's longer side in the report; a larger one is made smaller
MOST_BYTES = 50_000_000  # of a file that is opened; of how many pixels, Pillow limits

Find = Callable[[Run], dict[int, str]]  # the places of a run's grids, by step
Read = Callable[[Run, str], bytes]  # the file at such a place


@dataclass(frozen=True)
class Grid:
    """An arm's grid, encoded anew."""

    label: str
    run: str
    png: bytes


@dataclass(frozen=True)
class Grids:
    """Grids of one seed and step, and a sentence on the arms that have none to show ("" if all have)."""

    seed: int
    step: int
    shown: tuple[Grid, ...]
    note: str


def find_in_folder(run: Run) -> dict[int, str]:
    """Of a run that is a folder."""
    return by_step(str(path) for path in (Path(run.id) / FOLDER).glob("step_*.png"))


def read_file(run: Run, place: str) -> bytes:
    """Its beginning, as far as a grid may be large."""
    with open(place, "rb") as file:
        return file.read(MOST_BYTES + 1)


def by_step(places: Iterable[str]) -> dict[int, str]:
    """Those of the places that are called `step_<number>.png`, by the number."""
    found = ((NAME.fullmatch(Path(place).name), place) for place in places)
    return {int(match[1]): place for match, place in found if match}


def grids_of(study: ComparedArms, find: Find, read: Read) -> Grids | None:
    """Of the seed that most arms have and that has any, and of the last of the steps that most of them have; None where
    there is no grid. Of many arms the first `SHOWN_AT_MOST`."""
    seeds = Counter(seed for arm in study.arms for seed in arm.runs)
    for seed, _ in sorted(seeds.items(), key=lambda item: (-item[1], item[0])):
        runs = {arm.label: arm.runs[seed] for arm in study.arms if seed in arm.runs}
        runs = dict(list(runs.items())[:SHOWN_AT_MOST])
        places = {label: find(run) for label, run in runs.items()}
        steps = Counter(step for found in places.values() for step in found)
        if steps:
            step = max(steps, key=lambda s: (steps[s], s))
            there = {label: read(runs[label], found[step]) for label, found in places.items() if step in found}
            pngs = {label: png for label, content in there.items() if (png := small_png(content)) is not None}
            shown = tuple(Grid(label, runs[label].name, png) for label, png in pngs.items())
            unreadable = [label for label in there if label not in pngs]
            return Grids(seed, step, shown, _note(study, [label for label in places if label not in there], unreadable))
    return None


def _note(study: ComparedArms, without: list[str], unreadable: list[str]) -> str:
    said = [f"These are of the first {SHOWN_AT_MOST} of {len(study.arms)} arms."] * (len(study.arms) > SHOWN_AT_MOST)
    said += [f"Without one of this step: {'; '.join(without)}."] * bool(without)
    said += [f"Not an image that can be read: that of {'; '.join(unreadable)}."] * bool(unreadable)
    return " ".join(said)


def small_png(content: bytes) -> bytes | None:
    """A PNG as one of at most `LARGEST` pixels a side, encoded anew, so that nothing of the file but its pixels gets
    into the report; None if it is not an image or too large to be opened."""
    from PIL import Image, UnidentifiedImageError

    if len(content) > MOST_BYTES:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content), formats=["PNG"])
            pixels = image.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError, Warning):
        return None
    pixels.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    png = io.BytesIO()
    pixels.save(png, format="PNG")
    return png.getvalue()
