"""Checks of a composed config that do not need torch: invalid values and keys without effect."""

from __future__ import annotations

import os
import pickle
from dataclasses import fields
from fnmatch import fnmatchcase
from functools import lru_cache
from math import inf
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from urepa.config.conf_options import compose_here, is_group
from urepa.config.declared import declaration_of
from urepa.config.mistyped_keys import declaration_message, error_message
from urepa.config.parts import KINDS, SCHEMAS, family_of, parts_of, settings_that_are
from urepa.config.ranges import check_given, check_numbers
from urepa.core.backbone_protocols import Backbone, LoRA
from urepa.core.declared_keys import SAMPLER_STEPS, TIME
from urepa.core.ema_initial_weights import FIRST_DECAY
from urepa.core.errors import UserError, in_bucket
from urepa.core.nested_dicts import flatten
from urepa.core.protocols import Loss, Objective, Teacher
from urepa.core.teacher_names import ALONE
from urepa.core.track_protocols import Track
from urepa.method.alignment_grids import TEACHER, policy_of
from urepa.method.diffusion_fraction import strata
from urepa.runs.identity import is_identity
from urepa.runs.run_folder import parse_overrides, to_plain
from urepa.training.checks.losses import check_attention, check_class_token, check_guidance
from urepa.training.checks.sizes import as_shape, check_shapes
from urepa.training.checks.stop_rule import check_stop_rule

ABSENT = object()


def check(config: dict[str, Any], overrides: list[str]) -> None:
    """Raises UserError for the first mistake."""
    check_order(overrides)
    check_chosen(config)
    check_declared(config)
    check_given(config)
    check_arm(config, overrides)
    given = list(parse_overrides(overrides))
    check_keys(config)
    check_effects(config, given)
    check_teachers(config)
    check_turns(config, given)
    check_stop_rule(config)
    check_online(config, given)
    check_lora(config)
    check_rate(config)
    check_warm_start(config["warm_start"])
    check_ranges(config)
    check_grid(config)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    check_trainer(config["trainer"], world)
    check_spikes(config)
    check_validation(config)
    check_fraction(config, world)
    check_shapes(config)
    check_attention(config)
    check_class_token(config)
    check_guidance(config)


def check_order(overrides: list[str]) -> None:
    """Raises UserError if an arm precedes its experiment on the command line; Hydra 1.3 would silently drop the arm."""
    groups = [o.lstrip("+").partition("=")[0] for o in overrides]
    if "ablation" in groups and "experiment" in groups[groups.index("ablation") :]:
        raise UserError("+ablation before +experiment would be lost: write +experiment=... first, then +ablation=...")


def check_chosen(config: dict[str, Any]) -> None:
    """Raises UserError if a part was overwritten with a plain value."""
    evaluations = {f"evaluation.{name}": part for name, part in config["evaluation"].items()}
    parts = {kind: config[kind] for kind in KINDS if kind in config and kind != "evaluation"}
    for key, part in (parts | evaluations).items():
        if not isinstance(part, dict) or "_target_" not in part:
            group = key.partition(".")[0]
            raise UserError(f"{key}={part} is none of the parts in conf/{group}: choose one, {group}=NAME")


def check_arm(config: dict[str, Any], overrides: list[str]) -> None:
    """Raises UserError if an arm is not for this backbone, or if it changes anything besides the settings that it
    names."""
    arm = config["arm"]
    if arm is None:
        return
    name = parse_overrides(overrides).get("ablation")
    if name is None:
        raise UserError("arm is what ablation files say of themselves: give +ablation=NAME on the command line")
    family = family_of(config["backbone"])
    if family not in arm["families"]:
        raise UserError(f"+ablation={name} is for the backbone {' or '.join(arm['families'])}, not for {family}")
    baseline = without_arm(overrides)
    shared = baseline.keys() - {"arm"}  # commands that compose more than a run have parts of their own
    here, there = (flatten({part: c[part] for part in shared}) for c in (config, baseline))
    changed = {k for k in here.keys() | there.keys() if here.get(k, ABSENT) != there.get(k, ABSENT)}
    named = set(arm["changes"])
    if more := sorted(changed - named - vanished(here, there, named & changed)):
        raise UserError(
            f"+ablation={name} does not fit this experiment: besides {', '.join(sorted(named))} it would change "
            f"{', '.join(more)}"
        )
    if idle := sorted(k for k in named - changed if is_identity(k)):
        raise UserError(
            f"+ablation={name} does not change {', '.join(idle)} here: the experiment or the command line sets that "
            "value; drop one of the two"
        )


def vanished(here: dict[str, Any], there: dict[str, Any], changed: set[str]) -> set[str]:
    """The keys of `there` that `here` lacks because it has other parts in their place, as the changed `_target_`s say.
    An arm need not name them: which they are depends on the part that it replaces.

    Args:
        here, there: flat configs with an arm and without it.
    """
    places = tuple(key.removesuffix("_target_") for key in changed if key.endswith("._target_"))
    return {key for key in there.keys() - here.keys() if key.startswith(places)}


def without_arm(overrides: list[str]) -> dict[str, Any]:
    """The config of the same command without its ablation, and without the overrides that only fit the arm's parts:
    keys of a part that it exchanges, or keys that it adds. Raises UserError if that command does not compose."""
    others = tuple(o for o in overrides if o.lstrip("+").partition("=")[0] != "ablation")
    try:
        return _compose_baseline(others)
    except (HydraException, OmegaConfBaseException) as error:
        said = error_message(error, "train", list(others))
        raise UserError(f"this command without its +ablation, which an arm is compared with, fails: {said}") from error


@lru_cache
def _compose_baseline(overrides: tuple[str, ...]) -> dict[str, Any]:
    """The config of a command without its ablation. Choices of groups are tried first, because other keys depend on
    them."""
    if _composes(overrides):
        return _compose_cached(overrides)
    chosen = [o for o in overrides if _is_choice(o)]
    possible = _add_possible(chosen, [o for o in overrides if o not in chosen])
    return _compose_cached(tuple(o for o in overrides if o in possible))


def _add_possible(given: list[str], more: list[str]) -> list[str]:
    """`given`, and those overrides of `more` with which it still composes, found by trying halves."""
    if _composes((*given, *more)):
        return [*given, *more]
    if len(more) < 2:
        return given
    half = len(more) // 2
    return _add_possible(_add_possible(given, more[:half]), more[half:])


def _is_choice(override: str) -> bool:
    """Whether the override chooses an option of a group."""
    return is_group(override.lstrip("+~").partition("=")[0].partition("@")[0])


def _composes(overrides: tuple[str, ...]) -> bool:
    """Whether a run can have these keys and values. Interpolations are not resolved."""
    try:
        _compose(overrides)
    except (HydraException, OmegaConfBaseException):
        return False
    return True


def composed(overrides: list[str]) -> dict[str, Any] | None:
    """The config of a command without an ablation; None if it does not compose or would be refused."""
    try:
        config = _compose_cached(tuple(overrides))
        check(config, overrides)
    except (UserError, HydraException, OmegaConfBaseException):
        return None
    return config


@lru_cache
def _compose_cached(overrides: tuple[str, ...]) -> dict[str, Any]:
    """Composes a run once for all arms of a study. The result must not be modified."""
    return to_plain(_compose(overrides))


@lru_cache(maxsize=1)  # `_composes` and `_compose_cached` need the same result in turn
def _compose(overrides: tuple[str, ...]) -> DictConfig:
    return compose_here("train", list(overrides))


def check_effects(config: dict[str, Any], given: list[str]) -> None:
    """Raises UserError for a given key that has no effect in this composition."""
    loss: Loss = declaration_of(config["loss"])
    loss.check_schedule(declaration_of(config["schedule"]), config["trainer"]["max_steps"])
    if "loss.taps" in given:
        raise UserError(
            "loss.taps={...} would only add to the taps there are: write +loss.taps.NAME=WEIGHT to add one, "
            "~loss.taps.NAME to drop one"
        )
    for key in given:
        fitting = (
            why for idle, why in loss.idle_keys().items() if key.startswith(f"{idle}.") or fnmatchcase(key, idle)
        )
        if (reason := next(fitting, None)) is not None:
            raise UserError(f"{key} has no effect with {reason}; drop it")


def check_teachers(config: dict[str, Any]) -> None:
    """Raises UserError if the loss's settings for several teachers do not match the teachers."""
    teacher: Teacher = declaration_of(config["teacher"])
    loss: Loss = declaration_of(config["loss"])
    loss.check_teachers([name for name in teacher.members() if name != ALONE])


def check_keys(config: dict[str, Any]) -> None:
    """Raises UserError if a part lacks a key of its declaration or has others, as when an arm or the command line
    replaces only the `_target_` of a part."""
    for place, part, schema in parts_of(config):
        known = {field.name for field in fields(schema)}
        if missing := sorted(known - part.keys()):
            key = f"{place}.{missing[0]}"
            raise UserError(f"{part['_target_']} needs {key}, which this {place} does not set: choose another {place}")
        if odd := sorted(part.keys() - known):
            raise UserError(f"{place}.{odd[0]} is not a key of {part['_target_']}: choose another {place}")
        try:
            _check_types(schema, pickle.dumps(part))
        except OmegaConfBaseException as error:
            raise UserError(declaration_message(place, error, sorted(known))) from None


@lru_cache(maxsize=1024)
def _check_types(schema: type, settings: bytes) -> None:
    """Raises what OmegaConf does if the settings, a pickled dict, do not have the types of their declaration. The arms
    of a study have most parts in common."""
    OmegaConf.merge(OmegaConf.structured(schema), pickle.loads(settings))


def check_declared(config: dict[str, Any]) -> None:
    """Raises UserError for a part that is not declared, which could be neither checked nor read from a run's folder."""
    for key, target in flatten({kind: config[kind] for kind in KINDS if kind in config}).items():
        if key.endswith("._target_") and target not in SCHEMAS:
            raise UserError(
                f"{key}={target} is not a declared part: name it in a file of FOLDER/{key.partition('.')[0]}, and give "
                "--config-dir FOLDER"
            )


def check_online(config: dict[str, Any], given: list[str]) -> None:
    """Raises UserError for track keys without effect, such as cache settings of a network that is run in training."""
    track: Track = declaration_of(config["data"])
    track.check_given(given, has_teacher=bool(declaration_of(config["loss"]).taps))


def check_turns(config: dict[str, Any], given: list[str]) -> None:
    """Raises UserError for evaluations during training with a budget but no interval, or without evaluations."""
    if config["trainer"]["evaluate_every"] is None and "trainer.evaluation_share" in given:
        raise UserError("trainer.evaluation_share has no effect without trainer.evaluate_every; give that too")
    if config["trainer"]["evaluate_every"] is not None and not config["evaluation"]:
        raise UserError("trainer.evaluate_every has no effect with evaluation=none; choose some, evaluation=[NAME,...]")
    if config["trainer"]["look_every"] is None and "trainer.look_share" in given:
        raise UserError("trainer.look_share has no effect without trainer.look_every; give that too")


def check_lora(config: dict[str, Any]) -> None:
    """Raises UserError for adapters for which the backbone has no layers, or that would train nothing."""
    lora: LoRA = declaration_of(config["lora"])
    lora.check(declaration_of(config["backbone"]))


def check_rate(config: dict[str, Any]) -> None:
    """Raises UserError for a learning rate at which the backbone would hardly train. Nothing is checked for a warm
    start, or for an optimiser whose learning rates are not given by part."""
    declared: Any = declaration_of(config["backbone"])
    lora: LoRA = declaration_of(config["lora"])
    rates = config["optimizer"].get("lr")
    rate = rates.get(lora.group) if isinstance(rates, dict) else None
    if hasattr(declared, "check_rate") and config["warm_start"]["checkpoint"] is None and rate is not None:
        declared.check_rate(rate)


def check_warm_start(settings: dict[str, Any]) -> None:
    """Raises UserError for an allow-list without a checkpoint."""
    for key, value in settings.items():
        if key != "checkpoint" and value and settings["checkpoint"] is None:
            raise UserError(f"warm_start.{key} has no effect without warm_start.checkpoint; give that, or drop it")


def check_grid(config: dict[str, Any]) -> None:
    """Where a head does not resize, the taps have the teacher's rows and columns, in every bucket. With another
    `loss.grid` than the teacher's it depends on the taps, which are asked when they are built."""
    head: Any = SCHEMAS[config["head"]["_target_"]]
    loss: Loss = declaration_of(config["loss"])
    if head.resizes or not loss.taps or policy_of(loss) != TEACHER:
        return
    backbone: Backbone = declaration_of(config["backbone"])
    track: Track = declaration_of(config["data"])
    teacher: Teacher = declaration_of(config["teacher"])
    track.check()
    members = teacher.members()
    keys = {name: f"teacher.teachers.{name}.grid" if name else "teacher.grid" for name in members}
    grids = {keys[name]: track.teacher_grids(one) for name, one in members.items()}
    for i, (bucket, shape) in enumerate(zip(track.bucket_names, track.latent_shapes, strict=True)):
        with in_bucket(bucket):
            backbone.check_grids(as_shape(shape), {key: of_buckets[i] for key, of_buckets in grids.items()})


def check_ranges(config: dict[str, Any]) -> None:
    """Raises UserError for numbers outside of their ranges."""
    check_numbers(config)
    check_times(config)
    check_steps(config)


def check_times(config: dict[str, Any]) -> None:
    """Raises UserError if an evaluation uses a time that the objective does not have."""
    objective: Objective = declaration_of(config["objective"])
    for key, asked in settings_that_are(TIME, config["evaluation"], "evaluation"):
        for t in asked if isinstance(asked, list) else [asked]:
            if not objective.has_time(t):
                raise UserError(f"{key}={asked}: the objective's {objective.times}")


def check_steps(config: dict[str, Any]) -> None:
    """Raises UserError if an evaluation samples with more steps than the objective's samplers support."""
    most = declaration_of(config["objective"]).most_steps
    for key, steps in settings_that_are(SAMPLER_STEPS, config["evaluation"], "evaluation"):
        if steps > most:
            raise UserError(f"{key}={steps}: the objective has {most} timesteps; give as many or fewer")


def check_trainer(trainer: dict[str, Any], world: int) -> None:
    """Raises UserError for a global batch that does not divide, for frozen weights in a type that nothing else has, and
    for a warm-up of the EMA without effect."""
    if trainer["frozen"] == "bf16" and trainer["precision"] != "bf16":
        raise UserError("trainer.frozen=bf16 needs trainer.precision=bf16; give that too")
    if trainer["sharding"] is not None and trainer["channels_last"]:
        raise UserError(
            "trainer.sharding=fsdp2 needs weights in PyTorch's own layout; give trainer.channels_last=false"
        )
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


def check_spikes(config: dict[str, Any]) -> None:
    """Raises UserError if updates with a spike are to be skipped and nothing counts as one."""
    if config["trainer"]["skip_spikes"] and getattr(declaration_of(config["loss"]), "spike_threshold", inf) == inf:
        raise UserError(
            "trainer.skip_spikes=true has no effect without a threshold of the manifold loss: give loss.spike_threshold"
        )


def check_validation(config: dict[str, Any]) -> None:
    """Raises UserError if validation images do not fill a batch, where the track's settings give their number."""
    track: Track = declaration_of(config["data"])
    track.check_validation(config["trainer"]["validation_group"])


def check_fraction(config: dict[str, Any], world: int) -> None:
    """Raises UserError if not every process can take the same share of a part of the batch, or pairs of its samples."""
    fraction, trainer = declaration_of(config["loss"]).diffusion_fraction, config["trainer"]
    p, q = strata(fraction)
    share = trainer["batch_size"] // (world * trainer["accumulation"])
    if getattr(declaration_of(config["objective"]), "pairs_samples", False) and share % 2:
        raise UserError(
            f"objective._target_={config['objective']['_target_']} pairs neighbours of a batch, and a process has "
            f"{share} at a time; give a trainer.batch_size that is a multiple of {2 * world * trainer['accumulation']}"
        )
    if share % q:
        raise UserError(
            f"loss.diffusion_fraction={fraction} takes {p} of every {q} samples, and a process has {share} at a "
            f"time; give a trainer.batch_size that is a multiple of {q * world * trainer['accumulation']}"
        )
