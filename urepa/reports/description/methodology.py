"""The sections of the text in a paper's order: the parts' own descriptions, and what belongs to no part."""

from __future__ import annotations

from typing import Any

from urepa.config.declared import declaration_of
from urepa.core.descriptions import EvaluatedRun, format_value, join_with_and, number
from urepa.core.evaluation_protocols import evaluation_description
from urepa.core.nested_dicts import flatten
from urepa.core.text_tables import Table
from urepa.costs.bucket_costs import is_weighted, largest
from urepa.method.self_alignment import NO_OWN_STATES, own_states
from urepa.reports.description import model, training
from urepa.reports.description.markdown_and_latex import Block, Section
from urepa.reports.description.subject import Subject
from urepa.runs.identity import is_identity

PRECISIONS = {"fp32": "fp32", "bf16": "bf16 by autocast"}


def methodology(subject: Subject, origin: str) -> list[Section]:
    """All sections that follow from the config and the counts. `origin`: a sentence that names the text's source."""
    s, config = subject, subject.config
    adapted = [model.backbone(s, config["backbone"]), model.lora(s, config["lora"])]
    warm = model.warm_start(s)
    aligned = [model.head(s, config["head"])] if s.teacher is not None else []
    taught = [model.teacher(s, config["teacher"])] if s.teacher is not None else []
    return [
        Section("Architecture", (origin, *flatten_blocks(adapted + aligned), *warm, *parameters(s))),
        Section("Diffusion", tuple(model.objective(s, config["objective"]))),
        Section("Loss", tuple(training.loss(s))),
        Section("Data and teacher", (*training.data(s, config["data"]), *flatten_blocks(taught))),
        Section("Training", (length(s), *training.optimizer(s, config["optimizer"]), arithmetic(s))),
        Section(
            "Evaluation",
            (validation(s), *(evaluation(s, n, c) for n, c in config["evaluation"].items())),
        ),
        Section("Cost", tuple(cost(s))),
        Section("Settings", tuple(settings(s))),
    ]


def flatten_blocks(lists: list[list[Block]]) -> list[Block]:
    return [block for blocks in lists for block in blocks]


def evaluation(s: Subject, name: str, part: dict[str, Any]) -> str:
    """An evaluation's own description; without one, its name and settings."""
    run = EvaluatedRun(s.track.num_classes, s.objective.samplers[0], bool(s.loss.taps))
    text = evaluation_description(declaration_of(part), run)
    return generic_text(name, part) if text is None else text


def generic_text(name: str, part: dict[str, Any]) -> str:
    """A sentence on a part that has no description of its own."""
    values = {key: value for key, value in flatten(part).items() if not key.endswith("_target_")}
    set_to = [f"{key} = {format_value(value)}" for key, value in values.items()]
    with_these = f", with {join_with_and(set_to)}" if set_to else ""
    return f"The {name} is {part['_target_'].rpartition('.')[2]}{with_these}."


def parameters(s: Subject) -> list[Block]:
    """The number of parameters, and how many of them train."""
    by_part = s.planned.counted.parameters
    every = {k: sum(n[k] for n in by_part.values()) for k in ("all", "trainable")}
    rows = [(part, number(n["all"]), number(n["trainable"])) for part, n in [*by_part.items(), ("sum", every)]]
    share = every["trainable"] / every["all"]
    return [
        f"Of {number(every['all'])} parameters {number(every['trainable'])} train ({share:.2%}).",
        Table("Parameters by part.", ("part", "all", "trainable"), tuple(rows)),
    ]


def length(s: Subject) -> str:
    """Number of updates, batch size, epochs and seed."""
    settings = s.planned.settings
    parts = f", in {settings.accumulation} micro-batches" if settings.accumulation > 1 else ""
    epochs = settings.max_steps / s.steps_an_epoch()
    early = declaration_of(s.config["stop_when"]).description()
    return (
        f"Training takes {number(settings.max_steps)} updates of {number(settings.batch_size)} samples{parts}: "
        f"{epochs:.4g} epochs of {number(s.steps_an_epoch())} updates, each without the incomplete last batch. Data "
        f"order, noise, timesteps and dropped classes follow from the seed ({s.config['seed']}), the update and the "
        "sample's place in the batch, so that they are the same in every arm with that seed."
        f"{f' {early}' if early else ''}"
    )


def arithmetic(s: Subject) -> str:
    """Precision and EMA."""
    settings = s.planned.settings
    frozen = ", frozen weights held in bf16" if settings.frozen == "bf16" else ""
    decay = number(settings.ema_decay)
    warmed = f"min({decay}, (1 + n)/(10 + n)) at the update after n applied ones"
    return (
        f"Computation is in {PRECISIONS[settings.precision]}{frozen}; heads and losses are in fp32. Validation and "
        "evaluation use an exponential moving average of the trainable parameters, with decay "
        f"{warmed if settings.ema_warmup else decay}."
    )


def validation(s: Subject) -> str:
    settings = s.planned.settings
    of_bucket = ", each of one bucket," if len(s.planned.counted.buckets) > 1 else ""
    return (
        f"Every {number(settings.validate_every)} updates and after the last one, all losses are computed on the "
        f"{number(s.planned.counted.samples['val'])} validation images, in fixed groups of "
        f"{number(settings.validation_group)}{of_bucket} and with noise and timesteps that depend on the image alone."
    )


# --- cost ---------------------------------------------------------------------------------------------------


def cost(s: Subject) -> list[Block]:
    """The counts of `urepa.costs.estimate`, with those that are estimates marked."""
    planned, buckets = s.planned, s.planned.counted.buckets
    most_of = f"; of bucket {largest(buckets)}" if len(buckets) > 1 else ""
    forward, backward = planned.flops("forward"), planned.flops("backward")
    size = planned.settings.batch_size
    lines = [(part, forward[part], backward[part]) for part in forward]
    lines.append(("sum", sum(forward.values()), sum(backward.values())))
    rows = tuple((p, f"{f / size / 1e9:.3f}", f"{b / size / 1e9:.3f}", f"{(f + b) / 1e12:.3f}") for p, f, b in lines)
    return [
        f"An update takes {planned.flops_per_step / 1e12:.4g} TFLOP{after_stop(s)}{over_buckets(s)}, the run with its "
        "validations "
        f"{planned.run_flops / 1e15:.4g} PFLOP, counted operation by operation (two FLOPs a multiply-add).",
        Table("FLOPs (counted).", ("part", "forward, GFLOP a sample", "backward", "TFLOP an update"), rows),
        hours(s),
        f"Memory on the device: {planned.peak_bytes / 2**30:.1f} GiB at its peak (est., without the workspaces of "
        f"kernels{most_of}); caches on disk: {sum(c.disk_bytes for c in planned.counted.caches) / 1e9:.2f} GB (est.).",
    ]


def over_buckets(s: Subject) -> str:
    """The buckets over which the cost of an update is averaged, in words."""
    buckets = s.planned.counted.buckets
    if len(buckets) == 1:
        return ""
    return " on average over the buckets' updates" if is_weighted(buckets) else " on average over the buckets"


def after_stop(s: Subject) -> str:
    """The cost of an update after the alignment stops, in words."""
    stop = s.planned.stop_step
    return "" if stop is None else f" and from update {number(stop)} on {s.planned.flops_after_stop / 1e12:.4g} TFLOP"


def hours(s: Subject) -> str:
    """The hours of training. The lower bound is an estimate. Expected hours are stated only if an update was
    measured."""
    planned, device = s.planned, s.planned.device
    if planned.floor_hours is None or device.flops_per_s is None:
        said_first = f"No rate is stated for {device.name}, so no lower bound of the hours is given."
    else:
        said_first = (
            f"At {device.flops_per_s / 1e12:.4g} TFLOP/s, which {device.name} reaches at best (est.), the run takes at "
            f"least {planned.floor_hours:.3g} hours on one device (est.)."
        )
    row = planned.reference
    if row is None:
        return f"{said_first} No update was measured on it, so expected hours are not stated."
    return (
        f"{said_first} At the {row['tflops_per_s']:.4g} TFLOP/s of an update measured on {row['device']} (batch "
        f"{row['batch_size']}, {row['step_s']:.4g} s; measured) {planned.expected_hours:.3g} hours are expected."
    )


# --- all settings -------------------------------------------------------------------------------------------

NOT_SETTINGS = ("arm", "device", "measured", "out")  # keys of a plan, and an ablation file's name
OF_HEADS = ("optimizer.lr.head", "optimizer.weight_decay.head")
UNALIGNED = ("teacher", "head", "schedule", *OF_HEADS)  # these have no effect without a tap


def settings(s: Subject) -> list[Block]:
    """All settings that distinguish this run from others, by group. File locations and logging intervals are left
    out."""
    idle = NOT_SETTINGS if s.loss.taps else (*NOT_SETTINGS, *UNALIGNED)
    if own_states(s.loss) != NO_OWN_STATES:
        idle = (*NOT_SETTINGS, "teacher", "head", *(() if "head" in s.planned.counted.groups else OF_HEADS))
    groups: dict[str, list[tuple[str, str]]] = {}
    for key, value in flatten(s.config).items():
        if not is_identity(key) or any(f"{key}.".startswith(f"{k}.") for k in idle):
            continue
        group = key.partition(".")[0] if "." in key else "run"
        groups.setdefault(group, []).append((key, format_value(value)))
    return [
        Table(f"Settings: {group}.", ("key", "value"), tuple(rows), numbers=False) for group, rows in groups.items()
    ]
