"""The descriptions that tracks, losses and optimisers declare."""

from __future__ import annotations

from typing import Any

from urepa.config.declared import declaration_of
from urepa.core.descriptions import join_with_and, number, shape
from urepa.core.protocols import Schedule
from urepa.core.run_protocols import Optimizer
from urepa.core.text_tables import Table
from urepa.core.track_protocols import Track
from urepa.models.teachers.several_teachers import by_name
from urepa.reports.description.markdown_and_latex import Block
from urepa.reports.description.subject import Subject


def loss(s: Subject) -> list[Block]:
    """A loss's own description, with the schedule of its λ."""
    schedule: Schedule = declaration_of(s.config["schedule"])
    return [*s.loss.description(schedule=schedule, max_steps=s.planned.settings.max_steps)]


SPLITS = {"train": "training", "val": "validation", "test": "test"}


def data(s: Subject, part: dict[str, Any]) -> list[Block]:
    """A track's own description."""
    track: Track = declaration_of(part)
    samples = s.planned.counted.samples
    told = track.description(join_with_and([f"{number(n)} {SPLITS[split]} images" for split, n in samples.items()]))
    return [told, *([buckets(s)] if s.has_rectangles() else [])]


def buckets(s: Subject) -> Table:
    """The table of the shapes of images, of x0 and of the teachers' grids, with the number of training images of each
    if it is known."""
    counted, teachers = s.planned.counted.buckets, list(by_name(s.teacher))
    rows = []
    for bucket in counted.values():
        images = "not known yet" if bucket.samples is None else number(bucket.samples["train"])
        grids = [shape(bucket.grids[name]) for name in teachers]
        rows.append((shape(bucket.image_shape), shape(bucket.latent_shape), *grids, images))
    titles = [f"grid of {name}" if name else "teacher's grid" for name in teachers]
    return Table("Buckets.", ("pixels", "x0", *titles, "training images"), tuple(rows))


def optimizer(s: Subject, part: dict[str, Any]) -> list[Block]:
    """An optimiser's own description."""
    declared: Optimizer = declaration_of(part)
    groups = {group: parameters for group, (parameters, _) in s.planned.counted.groups.items()}
    settings = s.planned.settings
    return list(declared.description(groups, settings.max_steps, settings.clip_norm))
