"""The pictures that evaluations declare (`urepa.core.evaluation_protocols.Picture`), the arms' side by side."""

from __future__ import annotations

import io
from base64 import b64encode
from collections import Counter
from dataclasses import dataclass
from typing import Any

from urepa.config.parts import KINDS
from urepa.core.evaluation_protocols import Picture, pictures_declared_by
from urepa.reports.comparison.arms import ComparedArms
from urepa.reports.comparison.sample_grids import SHOWN_AT_MOST, List, Place, Read, bucket_of, open_png

LARGEST = 960  # pixels of a longer side in the report, in which labels of rows can be read
QUALITY = 80  # of JPEG: as a PNG, a picture of generated images of 1024 px would take 2 MB

Places = dict[str, dict[Place, str]]  # the files of a picture by run and place


@dataclass(frozen=True)
class Shown:
    """An arm's picture as a re-encoded JPEG."""

    label: str
    run: str
    jpeg: bytes


@dataclass(frozen=True)
class Pictures:
    """One picture of the arms, of one seed and step, and a sentence on those that have none ("" if all have one)."""

    title: str
    caption: str
    seed: int
    step: int
    shown: tuple[Shown, ...]
    note: str


def evaluation_pictures(study: ComparedArms, listed: List, read: Read) -> list[Pictures]:
    """Every picture of the declared evaluations that a run has."""
    declared = [picture for one in KINDS["evaluation"].values() for picture in pictures_declared_by(one)]
    folders = dict.fromkeys(picture.folder for picture in declared)
    runs = [run for arm in study.arms for run in arm.runs.values()]
    files = {run.id: [file for folder in folders for file in listed(run, folder)] for run in runs}
    found = []
    for picture in declared:
        for name, places in sorted(_by_name(picture, files).items()):
            title = f"{picture.title}: {name}" if name else picture.title
            pictures = _of_arms(study, places, read, title, picture.caption)
            found += [pictures] if pictures.shown else []
    return found


def _by_name(picture: Picture, files: dict[str, list[str]]) -> dict[str, Places]:
    """The files of a picture by the name in them."""
    found: dict[str, Places] = {}
    for run, own in files.items():
        for file in own:
            if (match := picture.read(file)) is not None:
                name, step = match
                found.setdefault(name, {}).setdefault(run, {})[step, bucket_of(file)] = file
    return found


def _of_arms(study: ComparedArms, places: Places, read: Read, title: str, caption: str) -> Pictures:
    """The picture of the seed that most arms have it of, at the last step that most of these have. Of several buckets
    those that most have, as many as fit into `SHOWN_AT_MOST` pictures, but at least one."""
    seeds = Counter(seed for arm in study.arms for seed, run in arm.runs.items() if run.id in places)
    seed = min(seeds, key=lambda s: (-seeds[s], s))
    runs = {arm.label: arm.runs[seed] for arm in study.arms if seed in arm.runs}
    of_arm = {label: places.get(run.id, {}) for label, run in runs.items()}
    steps = Counter(step for own in of_arm.values() for step in {step for step, _ in own})
    step = max(steps, key=lambda s: (steps[s], s))
    counts = Counter(bucket for own in of_arm.values() for at, bucket in own if at == step)
    fitting = max(1, SHOWN_AT_MOST // max(counts.values()))
    buckets = sorted(sorted(counts, key=lambda b: (-counts[b], b))[:fitting])
    asked = [(label, bucket) for label, own in of_arm.items() for bucket in buckets if (step, bucket) in own]
    shown, unreadable = [], []
    for label, bucket in asked[:SHOWN_AT_MOST]:
        jpeg = small_jpeg(read(runs[label], of_arm[label][step, bucket]))
        titled = f"{label}, bucket {bucket}" if bucket else label
        if jpeg is None:
            unreadable.append(titled)
        else:
            shown.append(Shown(titled, runs[label].name, jpeg))
    having = {label for label, _ in asked}
    note = [f"Shown are the first {SHOWN_AT_MOST} of {len(asked)}."] * (len(asked) > SHOWN_AT_MOST)
    note += [f"Not shown are the buckets {', '.join(sorted(counts.keys() - set(buckets)))}."] * (fitting < len(counts))
    note += [f"None of this step: {'; '.join(label for label in runs if label not in having)}."] * (having != set(runs))
    note += [f"Unreadable image files: {'; '.join(unreadable)}."] * bool(unreadable)
    return Pictures(title, caption, seed, step, tuple(shown), " ".join(note))


def small_jpeg(content: bytes) -> bytes | None:
    """A PNG encoded again as a JPEG of at most `LARGEST` pixels per side, so that only the file's pixels enter the
    report. None if the file is not an image or too large to be opened."""
    from PIL import Image

    image = open_png(content)
    if image is None:
        return None
    pixels = image.convert("RGB")
    pixels.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    jpeg = io.BytesIO()
    pixels.save(jpeg, format="JPEG", quality=QUALITY, subsampling=0)
    return jpeg.getvalue()


def on_page(pictures: Pictures) -> dict[str, Any]:
    """The values for the template, with the pictures as data URIs."""
    shown = [
        {"label": one.label, "run": one.run, "uri": f"data:image/jpeg;base64,{b64encode(one.jpeg).decode()}"}
        for one in pictures.shown
    ]
    return vars(pictures) | {"shown": shown}
