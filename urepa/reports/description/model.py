"""Words for backbones, what trains of them, heads, teachers and objectives. Keys of WORDS are `_target_`s; heads,
teachers and objectives declare theirs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from urepa.config.declared import declaration_of
from urepa.core.descriptions import Formula, number, shape
from urepa.core.protocols import Teacher
from urepa.core.teacher_names import ALONE
from urepa.core.text_tables import Table
from urepa.method.training_step import shares_of
from urepa.models.teachers.several_teachers import by_name, name_at
from urepa.reports.description.markdown_and_latex import Block, join_with_and
from urepa.reports.description.subject import Subject
from urepa.runs.checkpoint import newest

PROJECTIONS = "the query, key, value and output projections of every attention layer"
ADAPTED = {
    "attention": PROJECTIONS,
    "attention_conv": f"{PROJECTIONS} and the 3×3 convolutions of every residual block",
}
WHERE = {"mid": "the middle block", "all": "every block"}


def initial_weights(s: Subject, weights: str) -> str:
    """The clause on the backbone's initial weights; empty if all of them are replaced before training."""
    if weights != "random":
        return f", with the weights of {weights}"
    replaced = s.config["warm_start"] is not None and s.config["lora"]["_target_"].endswith("no_lora")
    return "" if replaced else ", with random initial weights"


def warm_start(s: Subject) -> list[Block]:
    """Whose weights training starts from, and of which step if that run is there to be asked."""
    folder = s.config["warm_start"]
    if folder is None:
        return []
    found = newest(Path(folder) / "checkpoints")
    step = "" if found is None else f", at step {number(found.step)}"
    return [f"Training begins at the EMA weights of the run {folder}{step}: all that trains takes their values."]


def tiny_unet(s: Subject, part: dict[str, Any]) -> list[Block]:
    channels, attention = part["block_out_channels"], part["attention"]
    side = s.track.latent_shape[1:]
    attending = [shape(n // 2**level for n in side) for level, here in enumerate(attention) if here]
    heads = (
        f" Cross-attention, in heads {part['head_dim']} wide, acts at {join_with_and(attending)}." if attending else ""
    )
    return [
        "The backbone is a class-conditional U-Net (UNet2DConditionModel of diffusers)"
        f"{initial_weights(s, 'random')}, on x0 of {shape(s.track.latent_shape)}. Its {len(channels)} resolutions have "
        f"{join_with_and(list(map(str, channels)))} channels, and {part['layers_per_block']} residual block(s) each on "
        f"the way down.{heads} The condition is one of {number(s.track.num_classes + 1)} trainable vectors of width "
        f"{part['cross_attention_dim']}, a class each and the null condition."
    ]


def sd15(s: Subject, part: dict[str, Any]) -> list[Block]:
    recomputed = " Its blocks are computed again in the backward pass." if part["gradient_checkpointing"] else ""
    return [
        f"The backbone is the U-Net of Stable Diffusion 1.5{initial_weights(s, part['weights'])}, on latents of "
        f"{shape(s.track.latent_shape)}. The condition is the frozen text embedding of a class's prompt, one of "
        f"{number(s.track.num_classes)}, or of the null prompt.{recomputed}"
    ]


SIT_POSITIONS = {"sincos": "fixed sine-cosine positions", "learned": "learned positions"}


def sit(s: Subject, part: dict[str, Any]) -> list[Block]:
    normed = " Queries and keys pass a LayerNorm." if part["qk_norm"] else ""
    return [
        f"The backbone is a SiT, a transformer with adaLN-Zero{initial_weights(s, part['weights'])}: "
        f"{part['depth']} blocks of width {part['width']} with {part['heads']} attention heads over "
        f"{part['patch']}×{part['patch']} patches "
        f"of x0 of {shape(s.track.latent_shape)}, with {SIT_POSITIONS[part['positions']]}.{normed} The condition is "
        f"one of {number(s.track.num_classes + 1)} vectors, a class each and the null condition."
    ]


def no_lora(s: Subject, part: dict[str, Any]) -> list[Block]:
    return ["The backbone itself is trained; there are no adapters."]


def add_lora(s: Subject, part: dict[str, Any]) -> list[Block]:
    rank = part["rank"]
    alpha = rank if part["alpha"] is None else part["alpha"]
    parameters, tensors = s.planned.counted.groups["lora"]
    dropout = f" with dropout {number(part['dropout'])} on their input" if part["dropout"] else ""
    return [
        f"The backbone is frozen. Low-rank adapters (LoRA) of rank r = {rank} and α = {alpha}, scale "
        f"{number(alpha / rank)}, stand beside {ADAPTED[part['targets']]} in {WHERE[part['blocks']]}{dropout}: "
        f"{number(parameters)} parameters in {tensors} tensors.",
        Formula(r"W' = W + \frac{\alpha}{r}\, B A"),
    ]


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
    rows = []
    for tap, weight in s.loss.taps.items():
        *grid, width = s.planned.counted.taps[tap]
        for name, teacher in teachers.items():
            out, share = f"{shape(teacher.grid)}, {teacher.width}", weight / total * shares[name]
            rows.append((name_at(tap, name), f"{shape(grid)}, {width}", out, f"{share:.4g}"))
    headers = ("tap", "its grid, width", "teacher's grid, width", "share of the alignment terms")
    return Table("Taps and what they are compared with.", headers, tuple(rows))


def teacher(s: Subject, part: dict[str, Any]) -> list[Block]:
    """What a teacher declares of itself, or several of themselves, and where its tokens come from."""
    declared: Teacher = declaration_of(part)
    members, built = declared.members(), by_name(s.teacher)
    blocks: list[Block] = [] if ALONE in members else [declared.description()]
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


WORDS: dict[str, Callable[[Subject, dict[str, Any]], list[Block]]] = {
    "urepa.models.backbones.sit.sit": sit,
    "urepa.models.backbones.unet.tiny_unet": tiny_unet,
    "urepa.models.backbones.sd15.sd15": sd15,
    "urepa.models.lora.no_lora": no_lora,
    "urepa.models.lora.add_lora": add_lora,
}
