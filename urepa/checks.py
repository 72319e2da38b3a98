"""What can be said about a composed config before torch loads: impossible numbers and keys without effect."""

from __future__ import annotations

import os
from fnmatch import fnmatch
from math import inf
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from urepa.doors import CONF
from urepa.errors import UserError
from urepa.nested import flatten
from urepa.runs import is_identity, parse_overrides, plain
from urepa.strata import strata

TINY = 1e-12
ABSENT = object()
# Lowest and highest value of a number, by dotted key; patterns as in a shell.
RANGES: dict[str, tuple[float, float]] = {
    "trainer.max_steps": (1, inf),
    "trainer.batch_size": (1, inf),
    "trainer.accumulation": (1, inf),
    "trainer.*_every": (1, inf),
    "trainer.validation_group": (1, inf),
    "trainer.keep_last": (1, inf),
    "trainer.max_skipped": (1, inf),
    "trainer.threads": (1, inf),
    "trainer.clip_norm": (TINY, inf),
    "loss.lambda_max": (0, inf),
    "loss.warmup_steps": (0, inf),
    "loss.manifold_weight": (0, inf),
    "loss.manifold_clip": (0, inf),
    "loss.diffusion_fraction": (0, 1),
    "optimizer.lr.*": (0, inf),
    "optimizer.weight_decay.*": (0, inf),
    "optimizer.eps": (0, inf),
    "optimizer.warmup_ratio": (0, 1),
    "objective.beta_*": (TINY, 1 - TINY),
    "objective.timesteps": (1, inf),
    "batch_size": (1, inf),
    "data.limit": (1, inf),
    "data.*_images": (1, inf),
    "data.image_size": (1, inf),
    "data.unshuffle": (1, inf),
    "data.channels": (1, inf),
    "data.scale": (TINY, inf),
    "data.num_classes": (1, inf),
    "data.cfg_dropout": (0, 1),
    "data.max_skipped": (0, 1),
    "backbone.layers_per_block": (1, inf),
    "backbone.cross_attention_dim": (1, inf),
    "backbone.head_dim": (1, inf),
    "lora.dropout": (0, 1 - TINY),
    "lora.alpha": (1, inf),
    "evaluation.samples.per_class": (1, inf),
    "evaluation.samples.shown_per_class": (1, inf),
    "evaluation.samples.max_classes": (1, inf),
    "evaluation.samples.sampler_steps": (1, inf),
    "evaluation.samples.knn": (1, inf),
    "evaluation.probe.timestep": (0, inf),
    "evaluation.probe.knn": (1, inf),
    "evaluation.probe.*_images": (1, inf),
}


def check(config: dict[str, Any], overrides: list[str]) -> None:
    """Raises UserError on the first mistake."""
    check_order(overrides)
    check_arm(config, overrides)
    check_effects(config, list(parse_overrides(overrides)))
    check_ranges(config)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    check_trainer(config["trainer"], world)
    check_fraction(config, world)


def check_order(overrides: list[str]) -> None:
    """Hydra 1.3 silently loses an arm that is written before its experiment."""
    groups = [o.lstrip("+").partition("=")[0] for o in overrides]
    if "ablation" in groups and "experiment" in groups[groups.index("ablation") :]:
        raise UserError("+ablation before +experiment would be lost: write +experiment=... first, then +ablation=...")


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
    rest = [o for o in overrides if o.lstrip("+").partition("=")[0] != "ablation"]
    if GlobalHydra.instance().is_initialized():  # inside a door
        return plain(compose("train", rest))
    with initialize_config_dir(CONF, version_base="1.3"):
        return plain(compose("train", rest))


def check_effects(config: dict[str, Any], given: list[str]) -> None:
    """A key that was given but changes nothing in this composition is a mistake, not a no-op."""
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


def check_numbers(config: dict[str, Any]) -> None:
    """Numbers that are out of their range, in any door's config."""
    for key, value in flatten(config).items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        for pattern, (low, high) in RANGES.items():
            if fnmatch(key, pattern) and not low <= value <= high:
                least = "more than 0" if low == TINY else f"{low:g} or more"
                most = "" if high == inf else ", less than 1" if high < 1 else f", at most {high:g}"
                raise UserError(f"{key}={value}: give {least}{most}")


def check_ranges(config: dict[str, Any]) -> None:
    """Numbers that cannot be."""
    check_numbers(config)
    betas = config["optimizer"]["betas"]
    if len(betas) != 2 or not all(0 <= b < 1 for b in betas):
        raise UserError(f"optimizer.betas={betas}: give two numbers from 0 up to, but not including, 1")
    last = config["objective"].get("timesteps", inf) - 1
    probe = config["evaluation"].get("probe", {}).get("timestep", 0)
    if probe > last:
        raise UserError(f"evaluation.probe.timestep={probe}: the objective's last timestep is {last}")


def check_trainer(trainer: dict[str, Any], world: int) -> None:
    """A global batch that does not divide; frozen weights in a type that nothing else has."""
    if trainer["frozen"] == "bf16" and trainer["precision"] != "bf16":
        raise UserError("trainer.frozen=bf16 holds frozen weights for trainer.precision=bf16; give that too")
    parts = world * trainer["accumulation"]
    if trainer["batch_size"] % parts:
        raise UserError(
            f"trainer.batch_size={trainer['batch_size']} does not divide into {world} processes x "
            f"trainer.accumulation={trainer['accumulation']}; give a multiple of {parts}"
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
