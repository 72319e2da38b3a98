"""The roots of the doors, and settings that only one door takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING

from urepa.config.evaluation import Sampler
from urepa.config.parts import DeviceKind, Precision, Trainer


@dataclass
class Arm:
    """What an ablation file says of itself; `urepa.checks` holds it to that, and the run does not keep it."""

    families: list[str] = MISSING  # backbones it is for, by the last part of their _target_
    changes: list[str] = MISSING  # dotted keys, all and only those in which it differs from its baseline


@dataclass
class Train:
    seed: int = 0
    arm: Arm | None = None
    resume: str | None = None
    warm_start: str | None = None
    backbone: Any = MISSING
    lora: Any = MISSING
    head: Any = MISSING
    teacher: Any = MISSING
    objective: Any = MISSING
    loss: Any = MISSING
    data: Any = MISSING
    optimizer: Any = MISSING
    trainer: Trainer = MISSING
    tracking: Any = MISSING
    evaluation: dict[str, Any] = MISSING


@dataclass
class Moved:
    root: str | None = None  # where the caches lie now; null: where they lay


@dataclass
class Evaluate:
    run: str | None = None  # a finished run's folder
    evaluation: dict[str, Any] | None = None  # null: the run's own
    tracking: Any = None  # null: the run's own
    data: Moved = field(default_factory=Moved)


class Stage(Enum):
    all = "all"
    manifest = "manifest"
    images = "images"
    latents = "latents"
    tokens = "tokens"
    prompts = "prompts"
    verify = "verify"
    adopt = "adopt"
    digest = "digest"


@dataclass
class Preprocess:
    stage: Stage = Stage.all
    shard: str = "0/1"  # part i of n, from 0/n to n-1/n; every stage takes it
    batch_size: int = 32  # images a network sees at once
    teacher: Any = MISSING
    data: Any = MISSING


class Against(Enum):
    documented = "documented"


@dataclass
class BenchSettings:
    steps: int = 5  # timed at a time
    rounds: int = 3  # medians of so many, the loops taking turns
    batches: int = 8  # of random records, in the experiment's own stores
    against: Against | None = None  # the document's loop, in the same process
    parts: bool = False  # also without each part of the fast step
    workers: int = 8  # of the documented loader
    folder: str = "."  # the disk to read from


@dataclass
class Bench(Train):
    bench: BenchSettings = field(default_factory=BenchSettings)
    out: str | None = None


@dataclass
class Device:
    name: str = MISSING  # as a measurement's file names it, or a part of that
    kind: DeviceKind = MISSING  # whose autocast rules and attention kernels count
    flops_per_s: float | None = MISSING  # of dense bf16 products; null: no floor is known
    memory_bytes: float | None = MISSING  # null: not checked


@dataclass
class Plan(Train):
    device: Any = MISSING
    measured: str | None = None  # a JSON file of `python -m urepa.bench`
    out: str | None = None


@dataclass
class BenchReading:
    folder: str = MISSING
    samples: int = MISSING
    batch_size: int = MISSING
    workers: int = MISSING
    rounds: int = MISSING
    out: str | None = None


@dataclass
class AblationGrid:
    cluster: Any = MISSING  # where jobs go: the settings of a file in conf/hydra/launcher
    arms: list[str] | None = None
    seeds: list[int] = MISSING
    shards: int = MISSING
    stages: list[str] = MISSING
    evaluate: str | None = None
    measured: str | None = None
    dry_run: bool = False
    scripts: str | None = None


@dataclass
class Select:
    experiment: Any = MISSING  # a name or a list of names
    ablation: Any = MISSING
    tag: str | None = MISSING
    ids: Any = MISSING


@dataclass
class Compare:
    store: str | None = MISSING
    runs: str = MISSING
    select: Select = MISSING
    baseline: str | None = MISSING
    report: str = MISSING
    publish: bool = MISSING
    out: str | None = MISSING
    order: list[str] = MISSING


class Baseline(Enum):
    base = "base"


@dataclass
class DataPlaces:
    root: str | None = None  # where the track's files lie now; null: where they lay
    vae: str | None = None  # the same, of the VAE


@dataclass
class BackbonePlaces:
    weights: str | None = None  # where the base weights lie now; null: where they lay


@dataclass
class OfRun:
    run: str | None = None  # a run's folder, finished or not
    out: str | None = None  # null: a folder inside the run's
    data: DataPlaces = field(default_factory=DataPlaces)
    backbone: BackbonePlaces = field(default_factory=BackbonePlaces)


@dataclass
class Images:
    """What is asked of a model, whichever it is."""

    run: str | None = None  # a run's folder, finished or not; or
    checkpoint: str | None = None  # published weights: a file or folder, or OWNER/NAME[@REVISION]/FILE on the hub
    classes: Any = None  # ids and names, one or a list; null: all
    n: int = 4  # images of each class
    sampler: Sampler | None = None  # null: the objective's usual one, ddim (also dpmsolver, euler) or euler (heun, sde)
    steps: int = 50
    guidance: float = 1.0  # none; SD-1.5 wants 4 to 8, a null condition that a short run has hardly trained less
    guidance_interval: list[float] = field(default_factory=lambda: [0.0, 1.0])  # a flow's times at which it holds
    seed: int = 0
    against: Baseline | None = None  # base: the same noise through the base weights, beside it
    batch_size: int = 16  # images at a time on each GPU
    precision: Precision = Precision.fp32
    out: str | None = None  # null: a folder inside the run's, or below generated/


@dataclass
class Generate(Images):
    data: DataPlaces = field(default_factory=DataPlaces)
    backbone: BackbonePlaces = field(default_factory=BackbonePlaces)


@dataclass
class GenerateCheckpoint(Train, Images):
    """Everything that `train` composes says what the weights are of; its seed is the images' here."""


@dataclass
class Export(OfRun):
    pass
