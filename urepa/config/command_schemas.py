"""The commands' schemas: every key with its meaning, its default and its range. `--help` and the check of numbers read
them here (`urepa.core.declared_keys`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from urepa.config.part_schemas import DeviceKind, Precision, Trainer
from urepa.core.declared_keys import LARGEST, LAST_SEED, SIZE, WORKERS, part, setting
from urepa.core.samplers import Sampler


@dataclass
class Arm:
    """What an ablation file states about itself. `urepa.training.checks.combinations` compares a run with it."""

    families: list[str] = setting("families of the backbones that the arm is for")
    changes: list[str] = setting("dotted keys, all and only those in which the arm differs from its baseline")


@dataclass
class Train:
    seed: int = setting(
        "of random numbers: the order of the data, noise, times, initial weights", 0, ge=0, le=LAST_SEED
    )
    resume: str | None = setting("a finished run's folder: goes on to the trainer.max_steps given beside it", None)
    warm_start: str | None = setting("a run's folder: starts a new run from its EMA weights", None)
    arm: Arm | None = part("what a file of conf/ablation states about itself; not for the command line", None)
    backbone: Any = part("the denoiser")
    lora: Any = part("which of the backbone's weights train: adapters, or all (none)")
    head: Any = part("from a tapped state to the teacher's tokens")
    teacher: Any = part("the frozen encoder whose tokens are the target")
    objective: Any = part("how x0 is noised and what the backbone predicts")
    loss: Any = part("the alignment terms, their weights and the taps")
    schedule: Any = part("the shape of λ after its warm-up")
    data: Any = part("the track: images and their caches")
    optimizer: Any = part("learning rates, weight decay and their schedule")
    trainer: Trainer = part("steps, batch, precision, validation, checkpoints")
    tracking: Any = part("the MLflow store that gets a copy of the metrics")
    evaluation: dict[str, Any] = part("what is measured after training: NAME or [NAME,...]")


@dataclass
class Prefetch(Train):
    pass


@dataclass
class Moved:
    root: str | None = setting("where the caches lie now; null: where they lay in training", None)


@dataclass
class Evaluate:
    run: str | None = setting("a finished run's folder; with -m also glob(PATTERN), several of them", None)
    evaluation: dict[str, Any] | None = part(
        "what is measured: NAME or [NAME,...]; null: what the run measured itself", None
    )
    tracking: Any = part("the MLflow store; null: the run's own", None)
    data: Moved = field(default_factory=Moved)


class Stage(Enum):
    all = "all"
    manifest = "manifest"
    images = "images"
    latents = "latents"
    tokens = "tokens"
    prompts = "prompts"
    text = "text"
    verify = "verify"
    adopt = "adopt"
    digest = "digest"


@dataclass
class Preprocess:
    stage: Stage = setting("what is made; all: every stage in order", Stage.all)
    shard: str = setting("part i of n, from 0/n to n-1/n; every stage takes it", "0/1")
    batch_size: int = setting("images that a network sees at once", 32, ge=1, le=SIZE)
    teacher: Any = part("the encoder whose tokens are cached")
    data: Any = part("the track: images and their caches")


@dataclass
class TrainClassifier:
    epochs: int = setting("passes over the training images", 12, ge=1, le=SIZE)
    seed: int = setting("of initial weights, order, flips and shifts", 0, ge=0, le=LAST_SEED)
    out: str | None = setting("the file; null: DATA.ROOT/cifar_cnn.safetensors", None)
    teacher: Any = part("comes with the track; no token is read, so it is not to be given")
    data: Any = part("the small track whose training images it learns")


class Against(Enum):
    documented = "documented"
    online = "online"
    plain = "plain"


@dataclass
class BenchSettings:
    steps: int = setting("steps that are timed at a time", 5, ge=1, le=SIZE)
    rounds: int = setting("times are medians of so many rounds, in which the loops take turns", 3, ge=1, le=SIZE)
    batches: int = setting("batches of random records, in the experiment's own stores", 8, ge=1, le=SIZE)
    against: Against | None = setting(
        "also times, in turns: the description's loop; the same step with the teacher (random weights) asked in it; "
        "the loop as one writes it first, over the same batches",
        None,
    )
    parts: bool = setting("also times the step without each part that makes it fast", False)
    workers: int = setting("worker processes of the description's loader", 8, ge=1, le=WORKERS)
    folder: str = setting("a folder on the disk to read from", ".")


@dataclass
class Bench(Train):
    bench: BenchSettings = field(default_factory=BenchSettings)
    out: str | None = setting("a file for the table as JSON", None)


@dataclass
class Device:
    """What a file of conf/device holds."""

    name: str = setting("as a measurement's file names it, or a part of that")
    kind: DeviceKind = setting("whose autocast rules and attention kernels count")
    flops_per_s: float | None = setting("of dense bf16 products; null: no floor is known", ge=1, le=LARGEST)
    memory_bytes: float | None = setting("null: not checked", ge=1, le=LARGEST)


@dataclass
class Plan(Train):
    device: Any = part("the device that hours and memory are for")
    measured: str | None = setting("a JSON file that `python -m urepa.bench out=FILE` wrote: expected hours", None)
    out: str | None = setting("a file for everything as JSON", None)


@dataclass
class Describe(Plan):
    out: str | None = setting("a folder for methodology.md and methodology.tex", None)


@dataclass
class BenchReading:
    folder: str = setting("a folder on the disk to measure; the stores take half a megabyte a sample", ".")
    # many more than the description's loader holds ready (2 batches a worker)
    samples: int = setting("records in each store", 6000, ge=1, le=SIZE)
    batch_size: int = setting("records that are read at a time", 128, ge=1, le=SIZE)
    workers: int = setting("worker processes of the description's loader", 8, ge=1, le=WORKERS)
    rounds: int = setting("rates are medians of so many rounds", 3, ge=1, le=SIZE)
    out: str | None = setting("a file for the table as JSON", None)


@dataclass
class Study:
    """What a file of conf/study holds: a table of arms."""

    overrides: list[str] = setting("of every run, as on the command line of urepa.train")
    baseline: str = setting("the arm that the others are compared with")
    controls: dict[str, str] = setting("arms that compare with another arm than the baseline, each with its own", {})
    arms: dict[str, list[str]] = setting("by an arm's name, its overrides beside those; tables have them in this order")


@dataclass
class AblationGrid:
    cluster: Any = part("where the jobs run; cluster.KEY=VALUE are the settings of that launcher")
    study: Any = part("a study by name: its arms, their baseline and the overrides of all runs", None)
    arms: list[str] | None = setting(
        "as a,b,c: of the study's arms, null: all; without study names in conf/ablation, null: all for the backbone",
        None,
    )
    seeds: list[int] = setting("seeds of every arm", [0, 1, 2], ge=0, le=LAST_SEED)
    shards: int = setting("jobs that make a latent track's caches side by side", 8, ge=1, le=SIZE)
    stages: list[str] = setting("which stages to submit", ["preprocess", "verify", "train", "evaluate", "compare"])
    evaluate: str | None = setting("an option of conf/evaluation for the stage evaluate; null: the runs' own", None)
    measured: str | None = setting("a JSON file that `python -m urepa.bench out=FILE` wrote: expected hours", None)
    dry_run: bool = setting("print what would be submitted and its hours, and submit nothing", False)
    scripts: str | None = setting("with dry_run: a folder for every job's command and batch script", None)


@dataclass
class Status:
    folder: str = setting("where the jobs are recorded, as the only argument", "outputs/.jobs")


@dataclass
class Select:
    experiment: Any = setting("a name, a list or a pattern as in a shell; also without `select.`", None)
    ablation: Any = setting("the same", None)
    tag: str | None = setting("KEY=VALUE, a tag of MLflow or a setting", None)
    ids: Any = setting("MLflow run ids or run folders, one or a list", None)


@dataclass
class Compare:
    store: str | None = setting(
        "an MLflow URI, sqlite:///mlflow.db or http://...; null: run folders", None, section="which runs"
    )
    runs: str = setting("a folder of runs, or a pattern; without store", "outputs")
    select: Select = field(default_factory=Select)
    baseline: str | None = setting(
        "an arm's label or its ablation, or KEY=VALUE,... of its config; null: chosen, and the report says why",
        None,
        section="how they are compared",
    )
    names: list[str] = setting(
        "LABEL=FOLDER of arms: what tables call the runs FOLDER/seed...; others by what differs", []
    )
    order: list[str] = setting("arms in the order in which tables show them; others follow by name")
    report: str = setting("a folder for index.html, tables and figures", "report", section="what is written")
    publish: bool = setting("with store: the report into MLflow too, as artifacts of a run", False)
    out: str | None = setting("a file for everything as JSON", None)


class Baseline(Enum):
    base = "base"


@dataclass
class TextEncoderPlaces:
    model: str | None = setting("the same for the folder of a text encoder", None)


@dataclass
class DataPlaces:
    root: str | None = setting(
        "where the track's files lie now; null: where they lay in training",
        None,
        section="for a run that was trained elsewhere",
    )
    vae: str | None = setting("the same for the VAE", None)
    text_encoder: TextEncoderPlaces = field(default_factory=TextEncoderPlaces)


@dataclass
class BackbonePlaces:
    weights: str | None = setting("where the base weights lie now; null: where they lay in training", None)


@dataclass
class Export:
    run: str | None = setting("a run's folder, finished or not; its newest valid checkpoint's EMA weights", None)
    out: str | None = setting("a new folder; null: RUN/export/step_...", None)
    data: DataPlaces = field(default_factory=DataPlaces)
    backbone: BackbonePlaces = field(default_factory=BackbonePlaces)


def _seed_of_images() -> Any:
    return setting("an image's noise depends on seed, class and index alone", 0, ge=0, le=LAST_SEED)


@dataclass
class Images:
    """What is asked of a model, whichever it is."""

    run: str | None = setting(
        "a run's folder, finished or not; its newest valid checkpoint's EMA weights", None, section="the model"
    )
    checkpoint: str | None = setting(
        "published weights instead: a file or folder, or OWNER/NAME[@REVISION]/FILE on the hub", None
    )
    classes: Any = setting("ids and names, one or a list; null: all", None, section="the images")
    prompt: str | None = setting(
        "instead of classes, of a run that was trained on captions: what the images show", None
    )
    prompts: str | None = setting("a text file with a prompt a line, instead of one", None)
    bucket: str | None = setting(
        "of a model of several shapes the one that the images have, as 48x80; null: the first", None
    )
    n: int = setting("images of each class, or prompt", 4, ge=1, le=SIZE)
    sampler: Sampler | None = setting(
        "null: ddim, or of a flow euler; dpmsolver is for DDPM, heun and sde for a flow", None
    )
    steps: int = setting("of the sampler", 50, ge=1, le=SIZE)
    guidance: float = setting(
        "classifier-free guidance; 1: none. SD-1.5 wants 4 to 8, a short run less", 1.0, ge=0, le=LARGEST
    )
    guidance_interval: list[float] = setting(
        "[LOW,HIGH], a flow's times at which guidance holds, in 0 to 1; 1 is noise", [0.0, 1.0]
    )
    seed: int = _seed_of_images()
    against: Baseline | None = setting("also the base weights' images of the same noise, a row above each", None)
    batch_size: int = setting("images at a time on each GPU; another size changes rounding at most", 16, ge=1, le=SIZE)
    precision: Precision = setting("of the networks", Precision.fp32)
    out: str | None = setting("the folder; null: RUN/generated/REQUEST, or generated/CHECKPOINT/REQUEST", None)


@dataclass
class Generate(Images):
    data: DataPlaces = field(default_factory=DataPlaces)
    backbone: BackbonePlaces = field(default_factory=BackbonePlaces)


@dataclass
class GenerateCheckpoint(Train, Images):
    """Everything that `train` composes says what the weights are of; its seed is the images' here."""

    seed: int = _seed_of_images()
