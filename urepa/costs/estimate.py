"""Estimates the costs of a composed experiment before anything is built, read or downloaded.

The model is built on the meta device by the same code as for training, and one step of it is counted. Memory
and FLOPs are predictions; hours come from a device's stated rate (a lower bound) or from a measurement (expected).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from urepa.config.declared import declaration_of
from urepa.config.parts import settings_that_are
from urepa.core.backbone_protocols import Backbone, ShapesFromValues
from urepa.core.declared_keys import TAP
from urepa.core.nested_dicts import flatten
from urepa.core.run_protocols import Optimizer
from urepa.core.track_protocols import Track
from urepa.core.types import Batch, Tokens
from urepa.costs.asked_teacher import stop_step
from urepa.costs.attention_example import attention_example, zeros_of
from urepa.costs.bench_results import read_measured
from urepa.costs.bucket_costs import BucketCost, is_weighted, largest, mean_forward, mean_step
from urepa.costs.counting import AFTER_THE_MODEL, Flops, StepCount, count_step, norm_as_on_cuda, on_fake_cpu
from urepa.costs.gpu_memory import Units, units_of, weight_bytes
from urepa.costs.online_costs import WITH_TEACHER, OnlineCost, online_costs
from urepa.data.lists.split_sizes import check_batch_size, check_buckets
from urepa.data.reader import THREADS
from urepa.data.stores.bucket_views import bucket_samples, bucket_views, teachers_of
from urepa.data.stores.disk_sizes import CacheSize, cache_sizes, reader_bytes
from urepa.method.class_tokens import zero_class
from urepa.method.objectives.objective_math import ObjectiveMath
from urepa.method.self_alignment import own_states
from urepa.method.training_step import AlignedModel, step_terms
from urepa.models.token_draws import draw_purposes, hand_out, in_eval_mode
from urepa.training.assembly import build_backbone_without_weights, build_loss, build_model, build_part, speed_up
from urepa.training.optimizer import groups_of
from urepa.training.trainer_settings import Settings

SAME_FLOPS_WITHIN = 0.02  # relative difference of two counts of one step's FLOPs
# settings that change the time and memory of the same FLOPs; older rows do not have them
SWITCHES = ("precision", "frozen", "channels_last", "attention", "compile")
# keys that change no count, nor do the keys below them
NOT_COUNTED = (
    *("seed", "resume", "warm_start", "tracking", "arm", "optimizer", "schedule", "device", "measured", "out"),
    *("evaluation", "data.cfg_dropout", "loss.lambda_max", "loss.warmup_steps"),
    *("objective.beta_start", "objective.beta_end", "objective.beta_schedule"),
)


@dataclass(frozen=True)
class Device:
    """conf/device; fields are described in `urepa.config`."""

    name: str
    kind: str
    flops_per_s: float | None
    memory_bytes: float | None


@dataclass(frozen=True)
class Counted:
    """The counts that follow from the config and, for a track with buckets, from its lists if they exist. FLOPs and
    bytes are a micro-batch's: FLOPs the mean over the buckets, bytes those of the bucket that needs most."""

    parameters: dict[str, dict[str, int]]  # by part: "all" and "trainable"
    groups: dict[str, tuple[int, int]]  # by optimiser group: numbers of trained parameters and of their tensors
    buckets: dict[str, BucketCost]  # by name; one with an empty name if all images have one shape
    weights: dict[str, int]  # bytes that lie on the device all the time
    units: Units
    step: StepCount
    forward_per_sample: int  # of a whole forward pass, as validation makes it
    samples: dict[str, int]  # by split
    caches: list[CacheSize]
    reader_bytes: int
    squares: int  # images that are read as JPEG in training; how large they are is not known

    @property
    def taps(self) -> dict[str, tuple[int, int, int]]:
        """Rows, columns and width of a tap's tokens, in the first bucket."""
        return next(iter(self.buckets.values())).taps


_COUNTED: dict[str, Counted] = {}


@dataclass(frozen=True)
class Plan:
    """The costs of one run. FLOPs are a whole batch's; memory is in bytes; hours are GPU-hours, on one device. Steps
    from `stop_step` on have no alignment terms; None: there are no such steps."""

    device: Device
    settings: Settings
    counted: Counted
    measured: list[dict[str, Any]]
    stop_step: int | None = None

    @property
    def micro_batch(self) -> int:
        return self.settings.batch_size // self.settings.accumulation

    def flops(self, direction: str) -> dict[str, int]:
        """FLOPs of a step, by part; `direction` is "forward" or "backward"."""
        by_part: dict[str, int] = getattr(self.counted.step, direction)
        parts = [*self.counted.parameters, AFTER_THE_MODEL]
        return {part: by_part.get(part, 0) * self.settings.accumulation for part in parts}

    @property
    def flops_per_step(self) -> int:
        return sum(sum(self.flops(direction).values()) for direction in ("forward", "backward"))

    @property
    def flops_after_stop(self) -> int:
        """FLOPs of a step from `stop_step` on: without the teacher and the alignment terms, but with the heads."""
        parts = (*WITH_TEACHER, AFTER_THE_MODEL)
        return self.flops_per_step - sum(self.flops(d).get(p, 0) for d in ("forward", "backward") for p in parts)

    @property
    def validation_flops(self) -> int:
        """FLOPs of all validations of the run, including the teacher's: they use it after `stop_step` too."""
        s = self.settings
        times = s.max_steps // s.validate_every + (s.max_steps % s.validate_every > 0)
        return times * self.counted.samples["val"] * self.counted.forward_per_sample

    @property
    def run_flops(self) -> int:
        """FLOPs of training steps and validations; logging and evaluations are not counted."""
        steps = self.settings.max_steps
        aligned = steps if self.stop_step is None else min(self.stop_step, steps)
        return aligned * self.flops_per_step + (steps - aligned) * self.flops_after_stop + self.validation_flops

    @property
    def saved_bytes(self) -> int:
        """Bytes that a micro-batch's forward pass saves for the backward pass."""
        return sum(self.counted.step.saved.values())

    @property
    def peak_bytes(self) -> int:
        """Bytes of weights, optimiser and EMA, and the peak of a step, without the workspace of kernels and the
        allocator's overhead."""
        held = self.counted.weights["gradients"] if self.settings.accumulation > 1 else 0
        kept = sum(size for name, size in self.counted.weights.items() if name != "gradients")
        return kept + held + self.counted.step.peak

    @property
    def fits(self) -> bool | None:
        """Whether the device's memory is at least the peak; None: not known."""
        return None if self.device.memory_bytes is None else self.peak_bytes <= self.device.memory_bytes

    @property
    def floor_step_s(self) -> float | None:
        """A lower bound of a step's seconds: FLOPs divided by the device's rate."""
        return None if self.device.flops_per_s is None else self.flops_per_step / self.device.flops_per_s

    @property
    def floor_hours(self) -> float | None:
        return None if self.device.flops_per_s is None else self.run_flops / self.device.flops_per_s / 3600

    @property
    def reference(self) -> dict[str, Any] | None:
        """The measurement from which expected hours are computed: of this project's own loop, preferably of the same
        step, then of the same batch size."""
        own = [row for row in self.measured if row["path"] == "urepa"]
        return min(
            own,
            key=lambda row: (not self.is_same_step(row), row["batch_size"] != self.settings.batch_size),
            default=None,
        )

    def is_same_step(self, row: dict[str, Any]) -> bool:
        """True if this row was measured on the same step: as many samples, as many FLOPs, the same switches."""
        counted = row["tflops_per_s"] * 1e12 * row["step_s"]
        alike = abs(counted / self.flops_per_step - 1) < SAME_FLOPS_WITHIN
        own = {key: getattr(self.settings, key) for key in SWITCHES}
        switched = any(row.get(key, value) != value for key, value in own.items())
        return row["batch_size"] == self.settings.batch_size and alike and not switched

    @property
    def expected_hours(self) -> float | None:
        """From the measured TFLOP/s; None without a measurement."""
        row = self.reference
        return None if row is None else self.run_flops / (row["tflops_per_s"] * 1e12) / 3600

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        counted = self.counted
        return {
            "device": asdict(self.device),
            "steps": self.settings.max_steps,
            "batch_size": self.settings.batch_size,
            "micro_batch": self.micro_batch,
            "precision": self.settings.precision,
            "parameters": counted.parameters,
            "flops_per_step": {"forward": self.flops("forward"), "backward": self.flops("backward")},
            "stop_step": self.stop_step,
            "flops_after_stop": None if self.stop_step is None else self.flops_after_stop,
            "validation_flops": self.validation_flops,
            "run_flops": self.run_flops,
            "memory_bytes": counted.weights,
            "saved_bytes": counted.step.saved,
            "saved_bytes_per_sample": self.saved_bytes / self.micro_batch,
            "peak_memory_bytes": self.peak_bytes,
            "fits": self.fits,
            "samples": counted.samples,
            "caches": [asdict(cache) for cache in counted.caches],
            "reader_bytes": counted.reader_bytes,
            "squares": counted.squares,
            "floor_step_s": self.floor_step_s,
            "gpu_hours_floor": self.floor_hours,
            "gpu_hours_expected": self.expected_hours,
            "measured": self.measured,
        } | self._buckets()

    def _buckets(self) -> dict[str, Any]:
        """The buckets for JSON; empty if there is only one."""
        buckets = self.counted.buckets
        if len(buckets) == 1:
            return {}
        return {
            "buckets": {name: one.as_dict(self.settings.batch_size) for name, one in buckets.items()},
            "flops_are": "the mean over the buckets' steps" if is_weighted(buckets) else "the mean over the buckets",
            "memory_is_of": largest(buckets),
        }


def plan(config: dict[str, Any], device: Device, measured: Path | None = None) -> Plan:
    """The costs of a composed config (`train`'s or `plan`'s) on a device; `measured` is a file of `urepa.bench`."""
    rows = [] if measured is None else read_measured(measured, device.name)
    return Plan(device, Settings(**config["trainer"]), _count_cached(config, device.kind), rows, stop_step(config))


def _count_cached(config: dict[str, Any], kind: str) -> Counted:
    """Counts a config once for all arms and seeds with the same costs; evaluations do not change a step's costs."""
    costly = {k: v for k, v in flatten(config).items() if not any(k == n or k.startswith(f"{n}.") for n in NOT_COUNTED)}
    track: Track = declaration_of(config["data"])
    backbone: Backbone = declaration_of(config["backbone"])
    for _, tap in settings_that_are(TAP, config["evaluation"]):
        backbone.check_tap(tap)
    key = json.dumps([kind, costly, _states(config), track.bucket_samples()])
    if key not in _COUNTED:
        _COUNTED[key] = count(config, kind)
    return _COUNTED[key]


def _states(config: dict[str, Any]) -> int:
    """The number of copies of the trained weights that the optimiser keeps."""
    optimizer: Optimizer = declaration_of(config["optimizer"])
    return optimizer.states


def count(config: dict[str, Any], kind: str) -> Counted:
    """Counts a config's step, on a device of this kind."""
    config = deepcopy(config)
    settings = Settings(**config["trainer"])
    loss, objective, track = build_loss(config), build_part(config["objective"]), build_part(config["data"])
    smallest = min(settings.batch_size, settings.validation_group)
    declaration_of(config["loss"]).check_layout(smallest, settings.accumulation)
    by_bucket = bucket_samples(track)
    samples = track.expected_samples() if by_bucket is None else _sums(by_bucket)
    check_batch_size(settings.batch_size, samples["train"])
    if by_bucket is not None and len(by_bucket) > 1:
        check_buckets({name: own["train"] for name, own in by_bucket.items()}, settings.batch_size)
    teacher = build_part(config["teacher"]) if loss.taps else None
    with torch.device("meta"):
        model, backbone_group = build_model(config, track, teacher, loss, build_backbone_without_weights)
    # compiled blocks cannot be counted, and kernels do not change the counts
    speed_up(model, replace(settings, compile=False, attention=None), torch.device("cpu"))
    parameters, weights = parameters_by_part(model), weight_bytes(model, _states(config))
    units = units_of(model)
    groups = {name: (sum(p.numel() for p in own), len(own)) for name, own in groups_of(model, backbone_group).items()}
    if isinstance(model.backbone, ShapesFromValues):
        model.backbone.fix_shapes()
    mode = on_fake_cpu(model)
    if kind == "cuda":
        norm_as_on_cuda(model)
    step, buckets, asked = CountedStep(model, objective, loss, teacher, settings, mode), {}, {}
    for name, view in bucket_views(track).items():
        asked = online_costs(view, teacher, kind)
        buckets[name] = step.cost_in(view, None if by_bucket is None else by_bucket[name], asked)
    for name, network in asked.items():
        parameters[name] = {"all": network.parameters, "trainable": 0}
        weights[name] = network.bytes
        if network.at_work:
            weights[f"{name}, at work"] = THREADS * network.at_work
    return Counted(
        parameters=parameters,
        groups=groups,
        buckets=buckets,
        weights=weights,
        units=units,
        step=mean_step(buckets, settings.batch_size),
        forward_per_sample=mean_forward(buckets),
        samples=samples,
        caches=cache_sizes(track, teacher),
        reader_bytes=reader_bytes(track, teacher, settings.batch_size),
        squares=sum(samples.values()) if track.reads_squares(teacher) else 0,
    )


@dataclass(frozen=True)
class CountedStep:
    """A step of a model whose parameters are fake (`mode`), counted in one bucket after another."""

    model: AlignedModel
    objective: ObjectiveMath
    loss: Any
    teacher: Any | None
    settings: Settings
    mode: Any

    def cost_in(self, view: Any, samples: Mapping[str, int] | None, asked: dict[str, OnlineCost]) -> BucketCost:
        """The costs in a bucket (`urepa.data.stores.bucket_views`). `samples`: its samples by split; `asked`: the
        networks that run beside the model."""
        model, loss, settings = self.model, self.loss, self.settings
        micro_batch = settings.batch_size // settings.accumulation

        def run(*inputs: Any, **more: Any) -> Any:  # as prepared by accelerate
            with torch.autocast("cpu", torch.bfloat16, enabled=settings.precision == "bf16"):
                return model(*inputs, **more)

        attention = attention_example(view, self.teacher, loss)

        def step() -> Tensor:
            batch = example(view, self.teacher, self.objective, micro_batch, loss.diffusion_fraction)
            purposes = (*own_states(loss).draws, *draw_purposes(model))
            draws = {purpose: torch.zeros(micro_batch) for purpose in purposes}
            class_noise = zero_class(model.backbone, micro_batch, batch.x0.device).get("class_BE11")
            batch = replace(
                batch, draws=draws, attention=zeros_of(attention, micro_batch), class_noise_BE11=class_noise
            )
            hand_out(model, batch.draws)  # `run` is no module
            return step_terms(cast(Any, run), self.objective, loss, batch, 0, lambda x_BD: x_BD)[0].total

        model.zero_grad()  # gradients of the previous bucket
        with self.mode:
            counts = count_step(model, lambda name: part_of(model, name), step)
            one = example(view, self.teacher, self.objective, 1)
            with torch.no_grad(), in_eval_mode(model), Flops() as forward:
                more = zero_class(model.backbone, 1, one.x0.device)
                seen = run(one.x0, one.t_B, one.condition, None, one.grids, **more)
        counts.forward.update({name: network.flops * micro_batch for name, network in asked.items()})
        return BucketCost(
            latent_shape=view.latent_shape,
            image_shape=view.image_shape[1:],
            samples=samples,
            step=counts,
            forward_per_sample=forward.total + sum(network.flops for network in asked.values()),
            taps={tap: (*tokens.grid, tokens.x_BND.shape[2]) for tap, tokens in seen.features.items()},
            grids=one.grids,
        )


def _sums(by_bucket: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """The number of samples of each split in all buckets."""
    splits = next(iter(by_bucket.values()))
    return {split: sum(own[split] for own in by_bucket.values()) for split in splits}


def part_of(model: AlignedModel, name: str) -> str:
    """The part to which a module or parameter of this name belongs: one of the backbone's stages, or "head"."""
    owner, _, rest = name.partition(".")
    backbone: Any = model.backbone
    return "head" if owner == "heads" else backbone.stage_of(rest)


def parameters_by_part(model: AlignedModel) -> dict[str, dict[str, int]]:
    """The number of parameters, and of those that train, by part."""
    backbone: Any = model.backbone
    parts = (*backbone.stages, "head")
    counts: dict[str, dict[str, int]] = {part: {"all": 0, "trainable": 0} for part in parts}
    for name, parameter in model.named_parameters():
        part = counts[part_of(model, name)]
        part["all"] += parameter.numel()
        part["trainable"] += parameter.numel() * parameter.requires_grad
    return {part: n for part, n in counts.items() if n["all"]}


def example(
    track: Any, teacher: Any | None, objective: ObjectiveMath, size: int, diffusion_fraction: float = 1.0
) -> Batch:
    """A batch with the shapes of a track, or of one of its buckets (`urepa.data.stores.bucket_views`)."""
    t_B = torch.full((size,), objective.time_at(0.5))
    x0 = torch.zeros(size, *track.latent_shape)
    stored, teachers = track.stores(teacher), {}
    for name, one in teachers_of(track, teacher).items():
        kept = stored.get(f"tokens_{name}" if name else "tokens", (None, "float32"))[1]
        dtype = torch.float16 if kept == "float16" else torch.float32
        teachers[name] = Tokens(torch.zeros(size, one.grid[0] * one.grid[1], one.width, dtype=dtype), one.grid)
    rows_R = None if diffusion_fraction == 1 else torch.arange(round(diffusion_fraction * size))
    condition_of = getattr(track.conditions, "example", track.conditions.null)
    return Batch([], x0, torch.zeros_like(x0), t_B, condition_of(size), teachers, rows_R)
