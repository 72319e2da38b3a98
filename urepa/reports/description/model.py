"""Words for backbones, what trains of them, heads, teachers and objectives. Keys of WORDS are `_target_`s."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from urepa.config.parts import KINDS, target_of
from urepa.core.text_tables import Table
from urepa.method.training_step import shares_of
from urepa.models.teachers.several_teachers import by_name, name_at
from urepa.reports.description.markdown_and_latex import Block, Formula, join_with_and, number
from urepa.reports.description.subject import Subject
from urepa.runs.checkpoint import newest
from urepa.training.assembly import make

PROJECTIONS = "the query, key, value and output projections of every attention layer"
ADAPTED = {
    "attention": PROJECTIONS,
    "attention_conv": f"{PROJECTIONS} and the 3×3 convolutions of every residual block",
}
WHERE = {"mid": "the middle block", "all": "every block"}
VARIANTS = {"linear": "linear in t", "scaled_linear": "linear in its square root over t"}


def shape(sizes: Any) -> str:
    """4×64×64."""
    return "×".join(map(str, sizes))


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
    layers = make(part).description()
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


def several(s: Subject, part: dict[str, Any]) -> list[Block]:
    blocks: list[Block] = [
        f"The backbone is aligned to {len(part['teachers'])} teachers at once, each with heads of its own and the "
        "shares of the alignment terms that are given above."
    ]
    for name, one in part["teachers"].items():
        blocks.append(f"{name}:")
        blocks += WORDS[one["_target_"]](replace(s, teacher=by_name(s.teacher)[name]), one)
    return blocks


def efficientnet(s: Subject, part: dict[str, Any]) -> list[Block]:
    size, stride = part["image_size"], part["stride"]
    side, which = size // stride, "last map" if stride == 32 else f"last map at stride {stride}"
    name = "EfficientNet-" + part["_target_"].rpartition(".EfficientNet")[2]
    return [
        f"The teacher is {name} with its ImageNet-1K weights, frozen. Images are resized to {size}×{size} "
        f"pixels (bicubic); its {which} of {side}×{side} is average-pooled to {shape(part['grid'])} tokens of width "
        f"{number(s.teacher.width)}, each of unit length. {token_source(s)}"  # type: ignore[union-attr]
    ]


POSITIONS = {
    "meta": "as Meta's code does (bicubic, by the factor (n + 0.1)/37)",
    "timm": "as timm and REPA's code do (bicubic, to the size, with antialiasing)",
    "transformers": "as the transformers library does (bicubic, to the size, without antialiasing)",
}


def vit(s: Subject, part: dict[str, Any]) -> list[Block]:
    size, side = part["image_size"], part["image_size"] // part["patch"]
    positions, rule = "", part["positions"]
    if s.teacher.resamples:  # type: ignore[union-attr]
        positions = f"Its learned positions are resampled from 37×37 {POSITIONS[rule]}. "
    return [
        f"The teacher is {part['model']} (family {part['family']}), frozen. Images are resized to {size}×{size} pixels "
        f"(bicubic); all {side}×{side} patch tokens of its last layer, without class and register tokens, are "
        f"average-pooled to {shape(part['grid'])} tokens of width {number(part['width'])}, each of unit length. "
        f"{positions}{token_source(s)}"
    ]


def token_source(s: Subject) -> str:
    """Where the teacher's tokens come from during training."""
    stored = s.track.stores(s.teacher).get("tokens")
    if stored is None:
        return "It is asked during training."
    precision = {"int8": "int8, in groups of 128 with a scale each"}.get(stored[1], stored[1])
    return f"Its tokens are computed once and kept as {precision}."


CORRUPTION = r"x_t = \sqrt{\bar\alpha_t}\, x_0 + \sqrt{1 - \bar\alpha_t}\, \epsilon, \qquad "


def ddpm(s: Subject, part: dict[str, Any], name: str, target: str) -> list[Block]:
    start, end, steps = part["beta_start"], part["beta_end"], part["timesteps"]
    last = float(s.objective.alphas_cumprod[-1])
    return [
        f"The backbone predicts {name} of a variance-preserving diffusion over T = {number(steps)} timesteps, drawn "
        f"uniformly. β rises from {number(start)} to {number(end)}, {VARIANTS[part['beta_schedule']]}; at the last "
        f"timestep a share of {last:.2g} of the signal's variance is left.",
        Formula(CORRUPTION + r"\bar\alpha_t = \prod_{s \le t} (1 - \beta_s), \qquad y = " + target),
    ]


def velocity(s: Subject, part: dict[str, Any]) -> list[Block]:
    target = r"v = \sqrt{\bar\alpha_t}\, \epsilon - \sqrt{1 - \bar\alpha_t}\, x_0"
    return ddpm(s, part, "the velocity v", target)


def epsilon(s: Subject, part: dict[str, Any]) -> list[Block]:
    return ddpm(s, part, "the noise ε", r"\epsilon")


FLOWS = {
    "linear": (r"x_t = (1 - t)\, x_0 + t\, \epsilon", r"y = \epsilon - x_0"),
    "cosine": (
        r"x_t = \cos \frac{\pi t}{2}\, x_0 + \sin \frac{\pi t}{2}\, \epsilon",
        r"y = \frac{\pi}{2} \Bigl( \cos \frac{\pi t}{2}\, \epsilon - \sin \frac{\pi t}{2}\, x_0 \Bigr)",
    ),
}
TIMES = {"uniform": "uniformly from [0, 1]", "lognormal": "such that the noise-to-signal ratio is log-normal(0, 1)"}


def flow(s: Subject, part: dict[str, Any]) -> list[Block]:
    path, target = FLOWS[part["path"]]
    return [
        f"The backbone predicts the velocity of a {part['path']} flow from data (t = 0) to noise (t = 1); t is drawn "
        f"{TIMES[part['draw']]}.",
        Formula(rf"{path}, \qquad {target}"),
    ]


WORDS: dict[str, Callable[[Subject, dict[str, Any]], list[Block]]] = {
    **{target_of(declared): head for declared in KINDS["head"].values()},
    "urepa.models.backbones.sit.sit": sit,
    "urepa.method.objectives.Flow": flow,
    "urepa.models.backbones.unet.tiny_unet": tiny_unet,
    "urepa.models.backbones.sd15.sd15": sd15,
    "urepa.models.lora.no_lora": no_lora,
    "urepa.models.lora.add_lora": add_lora,
    "urepa.models.teachers.efficientnet.EfficientNetLite0": efficientnet,
    "urepa.models.teachers.efficientnet.EfficientNetLite2": efficientnet,
    "urepa.models.teachers.vit.ViT": vit,
    "urepa.models.teachers.several_teachers.Several": several,
    "urepa.method.objectives.DDPMVelocity": velocity,
    "urepa.method.objectives.DDPMEpsilon": epsilon,
}
