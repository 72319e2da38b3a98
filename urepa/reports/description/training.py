"""What tracks and optimisers declare, as `describe` writes it."""

from __future__ import annotations

from typing import Any

from urepa.config.declared import declaration_of
from urepa.core.descriptions import join_with_and, number
from urepa.core.protocols import Schedule
from urepa.core.run_protocols import Optimizer
from urepa.core.track_protocols import Track
from urepa.reports.description.markdown_and_latex import Block
from urepa.reports.description.subject import Subject


def loss(s: Subject) -> list[Block]:
    """What a loss declares of itself, with the schedule of its λ."""
    schedule: Schedule = declaration_of(s.config["schedule"])
    return [*s.loss.description(schedule=schedule, max_steps=s.planned.settings.max_steps)]


SPLITS = {"train": "training", "val": "validation", "test": "test"}


def data(s: Subject, part: dict[str, Any]) -> list[Block]:
    """What a track declares of itself."""
    track: Track = declaration_of(part)
    samples = s.planned.counted.samples
    return [track.description(join_with_and([f"{number(n)} {SPLITS[split]} images" for split, n in samples.items()]))]


def optimizer(s: Subject, part: dict[str, Any]) -> list[Block]:
    """What an optimiser declares of itself."""
    declared: Optimizer = declaration_of(part)
    groups = {group: parameters for group, (parameters, _) in s.planned.counted.groups.items()}
    settings = s.planned.settings
    return list(declared.description(groups, settings.max_steps, settings.clip_norm))
