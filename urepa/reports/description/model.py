"""The descriptions that backbones, LoRA, heads, teachers and objectives declare."""

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
    """The run whose weights initialise training, and their step if that run can be read."""
    settings = s.config["warm_start"]
    source = settings["checkpoint"]
    if source is None:
        return []
    found = newest(Path(source) / "checkpoints")
    step = "" if found is None else f", at step {number(found.step)}"
    kept = [*settings["allow_missing"], *settings["allow_shape"]]
    initial = f", except {', '.join(kept)}, which keep their initial values" if kept else ""
    unused = f" Its {', '.join(settings['allow_unused'])} are left out." if settings["allow_unused"] else ""
    whose = "the weights in" if Path(source).is_file() else "the EMA weights of the run"
    return [f"Training begins at {whose} {source}{step}: all that trains takes their values{initial}.{unused}"]


def backbone(s: Subject, part: dict[str, Any]) -> list[Block]:
    """A backbone's own description. A warm start replaces all weights if the backbone itself trains."""
    declared, lora = declaration_of(part), declaration_of(s.config["lora"])
    are_replaced = s.config["warm_start"]["checkpoint"] is not None and not lora.has_adapters
    facts = BackboneFacts(s.track.latent_shape, s.track.num_classes, are_replaced, s.latent_shapes())
    return list(declared.description(facts))


def lora(s: Subject, part: dict[str, Any]) -> list[Block]:
    """LoRA's own description: which weights train."""
    declared: LoRA = declaration_of(part)
    return list(declared.description(*s.planned.counted.groups[declared.group]))


def head(s: Subject, part: dict[str, Any]) -> list[Block]:
    """A head's own description of its layers, and what all heads share."""
    layers = declaration_of(part).description()
    parameters, tensors = s.planned.counted.groups["head"]
    count = len(s.loss.taps) * len(by_name(s.teacher))
    return [
        f"A head of its own maps each tap to the teacher's space: {layers}. Its tokens have unit length. The "
        f"{count} head(s) have {number(parameters)} parameters in {tensors} tensors.",
        taps(s),
    ]


def taps(s: Subject) -> Table:
    """The table of taps: each tap's grid and width, the teacher's, and its share of the alignment terms."""
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
    """The descriptions of one teacher or of several, and the source of the tokens."""
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
    """The source of the teacher's tokens during training."""
    stored = s.track.stores(s.teacher).get("tokens")
    if stored is None:
        return "It is run during training."
    precision = {"int8": "int8, in groups of 128 with a scale each"}.get(stored[1], stored[1])
    return f"Its tokens are computed once and kept as {precision}."


def objective(s: Subject, part: dict[str, Any]) -> list[Block]:
    """An objective's own description."""
    return list(declaration_of(part).description())
