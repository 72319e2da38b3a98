"""What backbones, LoRA, heads, teachers and objectives declare of themselves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from urepa.config.declared import declaration_of
from urepa.core.backbone_protocols import LoRA
from urepa.core.descriptions import BackboneFacts, number, shape
from urepa.core.protocols import Teacher
from urepa.core.teacher_names import ALONE
from urepa.core.text_tables import Table
from urepa.method.alignment_grids import TEACHER, compared_on, policy_of
from urepa.method.training_step import shares_of
from urepa.models.teachers.several_teachers import by_name, name_at
from urepa.reports.description.markdown_and_latex import Block
from urepa.reports.description.subject import Subject
from urepa.runs.checkpoint import newest


def warm_start(s: Subject) -> list[Block]:
    """Whose weights training starts from, and of which step if that run is there to be asked."""
    folder = s.config["warm_start"]
    if folder is None:
        return []
    found = newest(Path(folder) / "checkpoints")
    step = "" if found is None else f", at step {number(found.step)}"
    return [f"Training begins at the EMA weights of the run {folder}{step}: all that trains takes their values."]


def backbone(s: Subject, part: dict[str, Any]) -> list[Block]:
    """What a backbone declares of itself. A warm start replaces all weights where the backbone itself trains."""
    declared, lora = declaration_of(part), declaration_of(s.config["lora"])
    are_replaced = s.config["warm_start"] is not None and not lora.has_adapters
    facts = BackboneFacts(s.track.latent_shape, s.track.num_classes, are_replaced, s.latent_shapes())
    return list(declared.description(facts))


def lora(s: Subject, part: dict[str, Any]) -> list[Block]:
    """What is declared of which weights train."""
    declared: LoRA = declaration_of(part)
    return list(declared.description(*s.planned.counted.groups[declared.group]))


def head(s: Subject, part: dict[str, Any]) -> list[Block]:
    """What a head declares of its layers, and what all heads share."""
    layers = declaration_of(part).description()
    parameters, tensors = s.planned.counted.groups["head"]
    count = len(s.loss.taps) * len(by_name(s.teacher))
    return [
        f"A head of its own maps each tap to the teacher's space: {layers}. Its tokens have unit length. The "
        f"{count} head(s) have {number(parameters)} parameters in {tensors} tensors.",
        taps(s),
    ]


def taps(s: Subject) -> Table:
    """Where the backbone is aligned, from the tap's tokens to the teacher's."""
    total, teachers = sum(s.loss.taps.values()), by_name(s.teacher)
    shares = shares_of(teachers, s.loss.teachers)
    rows, buckets, policy = [], s.planned.counted.buckets.values(), policy_of(s.loss)
    for tap, weight in s.loss.taps.items():
        width = s.planned.counted.taps[tap][2]
        grids = " or ".join(shape(bucket.taps[tap][:2]) for bucket in buckets)
        for name, teacher in teachers.items():
            asked = " or ".join(shape(bucket.grids[name]) for bucket in buckets)
            met = [compared_on(policy, bucket.taps[tap][:2], bucket.grids[name]) for bucket in buckets]
            on = () if policy == TEACHER else (" or ".join(map(shape, met)),)
            out, share = f"{asked}, {teacher.width}", weight / total * shares[name]
            rows.append((name_at(tap, name), f"{grids}, {width}", out, *on, f"{share:.4g}"))
    compared = () if policy == TEACHER else ("compared on",)
    headers = ("tap", "its grid, width", "teacher's grid, width", *compared, "share of the alignment terms")
    return Table("Taps and what they are compared with.", headers, tuple(rows))


def teacher(s: Subject, part: dict[str, Any]) -> list[Block]:
    """What a teacher declares of itself, or several of themselves, and where its tokens come from."""
    declared: Teacher = declaration_of(part)
    members, built = declared.members(), by_name(s.teacher)
    blocks: list[Block] = [] if ALONE in members else [declared.description()]
    if s.has_rectangles():
        blocks.append(
            "What follows on the size of images, maps and grids holds for a square image. An image of another shape is "
            "resized so that a token covers as many pixels, and its grid is in the table of buckets."
        )
    for name, one in members.items():
        blocks += [f"{name}:"] if name else []
        blocks.append(f"{one.description()} {token_source(replace(s, teacher=built[name]))}")
    return blocks


def token_source(s: Subject) -> str:
    """Where the teacher's tokens come from during training."""
    stored = s.track.stores(s.teacher).get("tokens")
    if stored is None:
        return "It is asked during training."
    precision = {"int8": "int8, in groups of 128 with a scale each"}.get(stored[1], stored[1])
    return f"Its tokens are computed once and kept as {precision}."


def objective(s: Subject, part: dict[str, Any]) -> list[Block]:
    """What an objective declares of itself."""
    return list(declaration_of(part).description())
