"""Which numbers a config may hold: every one is finite, and most have a lowest and a highest value."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatch
from math import inf
from typing import Any

from urepa.config.command_schemas import Device
from urepa.config.commands import COMMANDS
from urepa.config.keys import LARGEST, SIZE, WORKERS, keys_of
from urepa.core.errors import UserError
from urepa.core.nested_dicts import flatten

TINY = 1e-12
COUNT = 10**9  # more images than any data set has
LAST_STEP = 10**8 - 1  # a checkpoint's name has eight digits
# Lowest and highest value of a number, also in a list, by dotted key; patterns as in a shell. A highest value of
# LARGEST means any finite number, and inf that infinity has a meaning too.
RANGES: dict[str, tuple[float, float]] = {
    "trainer.max_steps": (1, LAST_STEP),
    "trainer.batch_size": (1, SIZE),
    "trainer.accumulation": (1, SIZE),
    "trainer.*_every": (1, LARGEST),
    "trainer.evaluation_share": (0, LARGEST),
    "trainer.validation_group": (1, SIZE),
    "trainer.keep_last": (1, LARGEST),
    "trainer.max_skipped": (1, LARGEST),
    "trainer.threads": (1, WORKERS),
    "trainer.clip_norm": (TINY, LARGEST),
    "trainer.ema_decay": (0, 1 - TINY),
    "loss.lambda_max": (0, LARGEST),
    "loss.warmup_steps": (0, LARGEST),
    "loss.manifold_weight": (0, LARGEST),
    "loss.manifold_clip": (0, LARGEST),
    "loss.diffusion_fraction": (0, 1),
    "loss.spatial_norm": (0, 1),
    "loss.spike_threshold": (0, inf),  # nothing is above it: spikes are not counted
    "loss.stop_step": (1, LARGEST),
    "loss.taps.*": (0, LARGEST),
    "loss.time_power": (0, LARGEST),
    "loss.teachers.*": (0, LARGEST),
    "optimizer.lr.*": (0, 1),  # Adam moves a weight by about as much in each update
    "optimizer.weight_decay.*": (0, LARGEST),
    "optimizer.eps": (0, LARGEST),
    "optimizer.*_ratio": (0, 1),
    "objective.beta_*": (TINY, 1 - TINY),
    "objective.timesteps": (1, SIZE),
    "data.limit": (1, COUNT),
    "data.*_images": (1, COUNT),
    "data.image_size": (1, SIZE),
    "data.latent_shape": (1, SIZE),
    "data.unshuffle": (1, SIZE),
    "data.channels": (1, SIZE),
    "data.scale": (TINY, LARGEST),
    "data.num_classes": (1, SIZE),
    "data.cfg_dropout": (0, 1),
    "data.max_skipped": (0, 1),
    "backbone.block_out_channels": (1, SIZE),
    "backbone.layers_per_block": (1, SIZE),
    "backbone.cross_attention_dim": (1, SIZE),
    "backbone.head_dim": (1, SIZE),
    "backbone.patch": (1, SIZE),
    "backbone.depth": (1, SIZE),
    "backbone.width": (1, SIZE),
    "backbone.heads": (1, SIZE),
    "head.depth": (1, SIZE),
    "head.hidden": (1, SIZE),
    "teacher.*grid": (1, SIZE),
    "teacher.*image_size": (1, SIZE),
    "teacher.*patch": (1, SIZE),
    "teacher.*stride": (1, SIZE),
    "teacher.*width": (1, SIZE),
    "lora.rank": (1, SIZE),
    "lora.alpha": (1, SIZE),
    "lora.dropout": (0, 1 - TINY),
    "cluster.at_once": (1, WORKERS),
    "tracking.patience": (0, 86_400),  # seconds
    "evaluation.samples.per_class": (1, SIZE),
    "evaluation.samples.shown_per_class": (1, SIZE),
    "evaluation.samples.max_classes": (1, SIZE),
    "evaluation.samples.sampler_steps": (1, SIZE),
    "evaluation.samples.knn": (1, SIZE),
    "evaluation.probe.knn": (1, SIZE),
    "evaluation.knn.k": (1, SIZE),
    "evaluation.*.timestep": (0, LARGEST),
    "evaluation.*.images": (1, COUNT),
    "evaluation.*_images": (1, COUNT),
    "evaluation.*.neighbours": (1, SIZE),
    "evaluation.*.guidance": (0, LARGEST),
    "evaluation.*.images.count": (2, SIZE),
    "evaluation.*.images.steps": (1, SIZE),
    "evaluation.*.images.interval": (0, 1),
    "evaluation.*.images.batch_size": (1, SIZE),
    "evaluation.*.grid": (1, SIZE),
    "evaluation.*.image_size": (1, SIZE),
    "evaluation.*.stride": (1, SIZE),
    "evaluation.*.reference_images": (2, COUNT),
    "evaluation.*.subset": (2, COUNT),
    "evaluation.*.kid_subsets": (1, SIZE),
    "evaluation.*.kid_subset_size": (2, SIZE),
    "evaluation.*.splits": (1, SIZE),
    "evaluation.spatial.far": (0, 1),
    "evaluation.spatial.decay": (0, 1),
}
# the commands' own keys have their ranges beside their meanings
OF_COMMANDS = [*(keys_of(command.schema) for command in COMMANDS.values()), keys_of(Device, "device.")]
RANGES |= {key.name: key.range for keys in OF_COMMANDS for key in keys if key.range is not None}
ASCENDING = (("objective.beta_start", "objective.beta_end"),)  # keys whose values do not fall


def check_given(config: dict[str, Any]) -> None:
    """UserError where a command lacks values that have no default."""
    missing = [key for key, value in flatten(config).items() if value == "???"]
    if missing:
        asked = " ".join(f"{key}=..." for key in missing)
        raise UserError(f"{' and '.join(missing)} must be given, as there is no default: add {asked}")


def check_numbers(config: dict[str, Any]) -> None:
    """UserError on the first number of any command's config that is not finite, out of its range or above one that it
    must not exceed. Old runs are not asked: what is checked is what a command was given."""
    flat = flatten(config)
    for key, value in flat.items():
        low, high = _range_of(key)
        for number in _numbers(value):
            if not low <= number <= high:  # NaN is in no range
                raise UserError(f"{key}={value}: give {_range_text(low, high, number)}")
    for lower, upper in ASCENDING:
        if lower in flat and upper in flat and flat[lower] > flat[upper]:
            raise UserError(f"{lower}={flat[lower]} is above {upper}={flat[upper]}; give one that is not")
    for key, value in flat.items():
        if key.endswith(".interval") and (len(value) != 2 or value[0] > value[1]):
            raise UserError(f"{key}={value}: give two times, the lower one first")
    _check_decay(config.get("optimizer", {}))


def _check_decay(optimizer: dict[str, Any]) -> None:
    """AdamW takes lr·weight_decay off every weight at each update (Loshchilov & Hutter 2019, Algorithm 2)."""
    for part, decay in optimizer.get("weight_decay", {}).items():
        lr = optimizer["lr"].get(part, 0.0)
        if lr * decay > 1:
            raise UserError(
                f"optimizer.lr.{part}={lr} x optimizer.weight_decay.{part}={decay} is the share of every weight that "
                "an update takes off; give values whose product is at most 1"
            )


def _numbers(value: Any) -> Iterator[float]:
    """The number that a value is, or those in a list."""
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, int | float) and not isinstance(one, bool):
            yield one


def _range_of(key: str) -> tuple[float, float]:
    """The numbers that all patterns of a key allow; any finite one where there is no pattern."""
    ranges = [own for pattern, own in RANGES.items() if fnmatch(key, pattern)]
    if not ranges:
        return -LARGEST, LARGEST
    return max(low for low, _ in ranges), min(high for _, high in ranges)


def _range_text(low: float, high: float, number: float) -> str:
    """The allowed numbers, for an error message."""
    if low == -LARGEST:
        return "a finite number"
    least = "more than 0" if low == TINY else f"{low:g} or more"
    if high == inf:
        return least
    if high == LARGEST:
        return least if -LARGEST <= number <= LARGEST else f"{least}, a finite number"
    return f"{least}, less than 1" if high < 1 else f"{least}, at most {high:,}"
