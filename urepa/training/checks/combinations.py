"""What can be said about a composed config before torch loads: impossible numbers and keys without effect."""

from __future__ import annotations

import os
from dataclasses import fields
from functools import lru_cache
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from urepa.config.conf_options import CONF
from urepa.config.declared import declaration_of
from urepa.config.mistyped_keys import declaration_message
from urepa.config.parts import KINDS, SCHEMAS, parts_of
from urepa.config.ranges import check_given, check_numbers
from urepa.core.ema_initial_weights import FIRST_DECAY
from urepa.core.errors import UserError
from urepa.core.nested_dicts import flatten
from urepa.core.protocols import Objective, Teacher
from urepa.method.diffusion_fraction import strata
from urepa.runs.run_folder import is_identity, parse_overrides, to_plain
from urepa.training.checks.sizes import check_shapes

ABSENT = object()


def check(config: dict[str, Any], overrides: list[str]) -> None:
    """Raises UserError on the first mistake."""
    check_order(overrides)
    check_chosen(config)
    check_declared(config)
    check_given(config)
    check_arm(config, overrides)
    given = list(parse_overrides(overrides))
    check_effects(config, given)
    check_teachers(config)
    check_keys(config)
    check_turns(config, given)
    check_online(config, given)
    check_lora(config)
    check_ranges(config)
    check_width(config)
    check_grid(config)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    check_trainer(config["trainer"], world)
    check_validation(config)
    check_fraction(config, world)
    check_shapes(config)


def check_order(overrides: list[str]) -> None:
    """Hydra 1.3 silently loses an arm that is written before its experiment."""
    groups = [o.lstrip("+").partition("=")[0] for o in overrides]
    if "ablation" in groups and "experiment" in groups[groups.index("ablation") :]:
        raise UserError("+ablation before +experiment would be lost: write +experiment=... first, then +ablation=...")


def check_chosen(config: dict[str, Any]) -> None:
    """A part that was overwritten with a plain value."""
    evaluations = {f"evaluation.{name}": part for name, part in config["evaluation"].items()}
    parts = {kind: config[kind] for kind in KINDS if kind in config and kind != "evaluation"}
    for key, part in (parts | evaluations).items():
        if not isinstance(part, dict) or "_target_" not in part:
            group = key.partition(".")[0]
            raise UserError(f"{key}={part} is none of the parts in conf/{group}: choose one, {group}=NAME")


def check_arm(config: dict[str, Any], overrides: list[str]) -> None:
    """An arm is for certain backbones, and differs from the same command without it in what it names alone."""
    arm = config["arm"]
    if arm is None:
        return
    name = parse_overrides(overrides).get("ablation")
    if name is None:
        raise UserError("arm is what ablation files say of themselves: give +ablation=NAME on the command line")
    family = config["backbone"]["_target_"].rpartition(".")[2]
    if family not in arm["families"]:
        raise UserError(f"+ablation={name} is for the backbone {' or '.join(arm['families'])}, not for {family}")
    baseline = without_arm(overrides)
    shared = baseline.keys() - {"arm"}  # a door that composes more than a run has parts of its own
    here, there = (flatten({part: c[part] for part in shared}) for c in (config, baseline))
    changed = {k for k in here.keys() | there.keys() if here.get(k, ABSENT) != there.get(k, ABSENT)}
    named = set(arm["changes"])
    if more := sorted(changed - named):
        raise UserError(
            f"+ablation={name} does not fit this experiment: besides {', '.join(sorted(named))} it would change "
            f"{', '.join(more)}"
        )
    if idle := sorted(k for k in named - changed if is_identity(k)):
        raise UserError(
            f"+ablation={name} does not change {', '.join(idle)} here: the experiment or the command line sets that "
            "value; drop one of the two"
        )


def without_arm(overrides: list[str]) -> dict[str, Any]:
    """The config of the same command without its ablation."""
    return _compose_cached(tuple(o for o in overrides if o.lstrip("+").partition("=")[0] != "ablation"))


@lru_cache
def _compose_cached(overrides: tuple[str, ...]) -> dict[str, Any]:
    """Composes a run once for all arms of a study. The result must not be modified."""
    if GlobalHydra.instance().is_initialized():  # inside a door
        return to_plain(compose("train", list(overrides)))
    with initialize_config_dir(CONF, version_base="1.3"):
        return to_plain(compose("train", list(overrides)))


def check_effects(config: dict[str, Any], given: list[str]) -> None:
    """A key that was given but changes nothing in this composition is a mistake, not a no-op."""
    stop, end = config["loss"].get("stop_step"), config.get("trainer", {}).get("max_steps")
    if stop is not None and stop >= end:
        raise UserError(f"loss.stop_step={stop} has no effect in a run of {end} steps; give fewer, or null")
    without_loss = config["loss"]["_target_"].endswith("DiffusionOnly")
    idle = ("head", "teacher", "optimizer.lr.head", "optimizer.weight_decay.head") if without_loss else ()
    if "loss.taps" in given:
        raise UserError(
            "loss.taps={...} would only add to the taps there are: write +loss.taps.NAME=WEIGHT to add one, "
            "~loss.taps.NAME to drop one"
        )
    for key in given:
        if any(key == k or key.startswith(f"{k}.") for k in idle):
            raise UserError(f"{key} has no effect with loss=none, which has neither teacher nor head; drop it")


def check_teachers(config: dict[str, Any]) -> None:
    """Every weight belongs to one of several teachers, and not all are 0."""
    weights, names = config["loss"].get("teachers", {}), config["teacher"].get("teachers", {})
    for name in weights:
        if name not in names:
            there = f"these are {', '.join(names)}" if names else "there are no several teachers, whose names it takes"
            raise UserError(f"loss.teachers.{name} has no effect: {there}")
    if names and not any(weights.get(name, 1.0) for name in names):
        raise UserError("loss.teachers: give weights that are not all 0; to train without alignment, loss.lambda_max=0")


def check_keys(config: dict[str, Any]) -> None:
    """A part has the keys that its declaration has: what a `_target_` of an arm or of the command line, put in the
    place of another part's, may not."""
    for place, part, schema in parts_of(config):
        known = {field.name for field in fields(schema)}
        if missing := sorted(known - part.keys()):
            key = f"{place}.{missing[0]}"
            raise UserError(f"{part['_target_']} needs {key}, which this {place} does not set: choose another {place}")
        if odd := sorted(part.keys() - known):
            raise UserError(f"{place}.{odd[0]} is no key of {part['_target_']}: choose another {place}")
        try:
            OmegaConf.merge(OmegaConf.structured(schema), part)
        except OmegaConfBaseException as error:
            raise UserError(declaration_message(place, error, sorted(known))) from None


def check_declared(config: dict[str, Any]) -> None:
    """Every part is a declared one: another could be neither checked nor read back from a run's folder."""
    for key, target in flatten({kind: config[kind] for kind in KINDS if kind in config}).items():
        if key.endswith("._target_") and target not in SCHEMAS:
            raise UserError(
                f"{key}={target} is no declared part: name it in a file of FOLDER/{key.partition('.')[0]}, and give "
                "--config-dir FOLDER"
            )


def check_online(config: dict[str, Any], given: list[str]) -> None:
    """What is asked of a network in training has no cache, and nobody is asked for nothing."""
    data, without_loss = config["data"], config["loss"]["_target_"].endswith("DiffusionOnly")
    latents, teacher = (data.get(f"online_{what}", False) for what in ("latents", "teacher"))
    if teacher and without_loss:
        raise UserError("data.online_teacher has no effect with loss=none, which has no teacher; drop it")
    idle = {"data.latents": "data.online_latents"} if latents else {}
    idle |= {"data.tokens": "data.online_teacher", "data.token_dtype": "data.online_teacher"} if teacher else {}
    for key in given:
        if key in idle:
            raise UserError(f"{key} has no effect with {idle[key]}=true, which reads no such cache; drop one of them")
    if data.get("stage_to") is not None and latents and (teacher or without_loss):
        raise UserError("data.stage_to has no effect here: there is no cache to copy; drop it")


def check_turns(config: dict[str, Any], given: list[str]) -> None:
    """Evaluations in the course of training: a budget without turns, or turns without evaluations."""
    if config["trainer"]["evaluate_every"] is None and "trainer.evaluation_share" in given:
        raise UserError("trainer.evaluation_share has no effect without trainer.evaluate_every; give that too")
    if config["trainer"]["evaluate_every"] is not None and not config["evaluation"]:
        raise UserError("trainer.evaluate_every has no effect with evaluation=none; choose some, evaluation=[NAME,...]")


def check_lora(config: dict[str, Any]) -> None:
    """Adapters of a SiT that begins at random: its gates are 0 and frozen, so nothing would ever reach them."""
    backbone = config["backbone"]
    if "rank" in config["lora"] and backbone["_target_"].endswith(".sit") and backbone["weights"] == "random":
        raise UserError("lora on a SiT of random weights would train nothing: give backbone.weights=FILE, or lora=none")


def check_width(config: dict[str, Any]) -> None:
    """Heads of attention that do not divide a level's channels: the library would take another width in silence."""
    backbone = config["backbone"]
    channels, width = backbone.get("block_out_channels", []), backbone.get("head_dim", 1)
    attention = [*backbone.get("attention", [])[:-1], True]  # the middle block has it always, at the last width
    odd = [c for c, has_heads in zip(channels, attention, strict=False) if has_heads and c % width]
    if odd:
        raise UserError(
            f"backbone.head_dim={width} does not divide the {odd[0]} channels of a level with attention (of "
            f"backbone.block_out_channels={channels}); give a width that divides them all"
        )


def check_grid(config: dict[str, Any]) -> None:
    """Where a head does not resize, a SiT has as many patches as the teacher has tokens, in rows and in columns."""
    backbone, data = config["backbone"], config["data"]
    head: Any = SCHEMAS[config["head"]["_target_"]]
    if (
        head.resizes
        or not backbone["_target_"].endswith(".sit")
        or config["loss"]["_target_"].endswith("DiffusionOnly")
    ):
        return
    sides = data["latent_shape"][1:] if "latent_shape" in data else 2 * [data["image_size"] // data["unshuffle"]]
    own = [side // backbone["patch"] for side in sides]
    teacher: Teacher = declaration_of(config["teacher"])
    for name, one in teacher.members().items():
        if list(one.grid) != own:
            ours, teachers = ("x".join(map(str, g)) for g in (own, one.grid))
            key = f"teachers.{name}.grid" if name else "grid"
            raise UserError(
                f"this SiT has {ours} patches and the teacher {teachers} tokens, which this head compares one by one: "
                f"give teacher.{key}={own} (and a teacher.image_size that has them), backbone.patch=..., or head=conv"
            )


def check_ranges(config: dict[str, Any]) -> None:
    """Numbers that cannot be."""
    check_numbers(config)
    betas = config["optimizer"]["betas"]
    if len(betas) != 2 or not all(0 <= b < 1 for b in betas):
        raise UserError(f"optimizer.betas={betas}: give two numbers from 0 up to, but not including, 1")
    check_times(config)
    check_steps(config)


def check_times(config: dict[str, Any]) -> None:
    """Every time that an evaluation reads at is one of the objective's."""
    objective: Objective = declaration_of(config["objective"])
    for name, settings in config["evaluation"].items():
        for key in ("timestep", "timesteps"):
            asked = settings.get(key, [])
            for t in asked if isinstance(asked, list) else [asked]:
                if not objective.has_time(t):
                    raise UserError(f"evaluation.{name}.{key}={asked}: the objective's {objective.times}")


def check_steps(config: dict[str, Any]) -> None:
    """An evaluation samples in at most as many steps as the objective's samplers can take."""
    most = declaration_of(config["objective"]).most_steps
    for key, steps in flatten(config["evaluation"]).items():
        if key.endswith((".sampler_steps", ".images.steps")) and steps > most:
            raise UserError(f"evaluation.{key}={steps}: the objective has {most} timesteps; give as many or fewer")


def check_trainer(trainer: dict[str, Any], world: int) -> None:
    """A global batch that does not divide; frozen weights in a type that nothing else has; an idle warm-up."""
    if trainer["frozen"] == "bf16" and trainer["precision"] != "bf16":
        raise UserError("trainer.frozen=bf16 holds frozen weights for trainer.precision=bf16; give that too")
    if trainer["ema_warmup"] and trainer["ema_decay"] <= FIRST_DECAY:
        raise UserError(
            f"trainer.ema_warmup=true has no effect with trainer.ema_decay={trainer['ema_decay']}, as the warm-up "
            f"begins at {FIRST_DECAY}; drop one of them"
        )
    parts = world * trainer["accumulation"]
    if trainer["batch_size"] % parts:
        raise UserError(
            f"trainer.batch_size={trainer['batch_size']} does not divide into {world} processes x "
            f"trainer.accumulation={trainer['accumulation']}; give a multiple of {parts}"
        )


def check_validation(config: dict[str, Any]) -> None:
    """A validation batch is full: said now where the track knows how many images it will have."""
    group, images = config["trainer"]["validation_group"], config["data"].get("validation_images")
    if images is not None and group > images:
        raise UserError(
            f"trainer.validation_group={group} is more than data.validation_images={images}; give "
            f"trainer.validation_group={images} or fewer"
        )


def check_fraction(config: dict[str, Any], world: int) -> None:
    """A part of the batch that not every process can take the same share of."""
    fraction, trainer = config["loss"].get("diffusion_fraction", 1.0), config["trainer"]
    p, q = strata(fraction)
    share = trainer["batch_size"] // (world * trainer["accumulation"])
    if share % q:
        raise UserError(
            f"loss.diffusion_fraction={fraction} takes {p} of every {q} samples, and a process has {share} at a "
            f"time; give a trainer.batch_size that is a multiple of {q * world * trainer['accumulation']}"
        )
