"""The commands' schemas: every key with its meaning, default and range. `--help` and the check of numbers use them
(`urepa.core.declared_keys`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from urepa.config.part_schemas import Arm, DeviceKind, Moved, Precision, Trainer, WarmStart
from urepa.core.declared_keys import LARGEST, LAST_SEED, SIZE, TINY, WORKERS, part, setting
from urepa.core.samplers import Sampler


@dataclass
class Train:
    seed: int = setting(
        "seed of random numbers: the order of the data, noise, times, initial weights", 0, ge=0, le=LAST_SEED
    )
    resume: str | None = setting("a finished run's folder: continues it to the given trainer.max_steps", None)
    warm_start: WarmStart = field(default_factory=WarmStart)
    arm: Arm | None = part("metadata in a file of conf/ablation; not for the command line", None)
    backbone: Any = part("the denoiser")
    lora: Any = part("which of the backbone's weights train: adapters, or all (none)")
    head: Any = part("maps a tapped state to the teacher's tokens")
    teacher: Any = part("the frozen encoder whose tokens are the target")
    objective: Any = part("how x0 is noised and what the backbone predicts")
    loss: Any = part("the alignment terms, their weights and the taps")
    schedule: Any = part("the shape of λ after its warm-up")
    data: Any = part("the track: images and their caches")
    optimizer: Any = part("learning rates, weight decay and their schedule")
    trainer: Trainer = part("steps, batch, precision, validation, checkpoints")
    stop_when: Any = part("when the run ends before its last step")
    tracking: Any = part("where copies of the metrics go: MLflow, W&B, TensorBoard, a CSV file, or several")
    evaluation: dict[str, Any] = part("the evaluations after training: NAME or [NAME,...]")


@dataclass
class Prefetch(Train):
    pass


@dataclass
class Evaluate:
    run: str | None = setting("a finished run's folder; with -m also glob(PATTERN), several of them", None)
    evaluation: dict[str, Any] | None = part("the evaluations: NAME or [NAME,...]; null: those of the run", None)
    tracking: Any = part("where copies of the metrics go; null: as in training", None)
    data: Moved = field(default_factory=Moved)


class Stage(Enum):
    all = "all"
    manifest = "manifest"
    images = "images"
    latents = "latents"
    tokens = "tokens"
    image_tokens = "image_tokens"
    prompts = "prompts"
    text = "text"
    verify = "verify"
    adopt = "adopt"
    digest = "digest"
    read_shards = "read_shards"
    write_shards = "write_shards"
    statistics = "statistics"
    diagnose = "diagnose"
    repair = "repair"


BESIDE = ("read_shards", "write_shards", "statistics", "diagnose", "repair")  # stages that `all` does not run


class ComparedWith(Enum):
    encoder = "encoder"
    images = "images"
    latents = "latents"


@dataclass
class Preprocess:
    stage: Stage = setting("what is made; all: every stage in order", Stage.all)
    shard: str = setting("part i of n, from 0/n to n-1/n, for every stage", "0/1")
    batch_size: int = setting("images per batch of a network", 32, ge=1, le=SIZE)
    webdataset: str | None = setting(
        "the folder of shards that stage=read_shards reads, write_shards writes, and diagnose and repair judge instead "
        "of the track's own tokens",
        None,
    )
    shard_size: int | None = setting("samples per shard that is written; null: 1000", None, ge=1, le=SIZE)
    compared_with: ComparedWith | None = setting(
        "what stage=diagnose and repair compare tokens with: tokens that the encoder makes of the images (null: "
        "these), the images' colours and edges, or those of the latents",
        None,
    )
    teacher: Any = part("the encoder whose tokens are cached")
    data: Any = part("the track: images and their caches")


@dataclass
class TrainClassifier:
    epochs: int = setting("passes over the training images", 12, ge=1, le=SIZE)
    seed: int = setting("seed of initial weights, order, flips and shifts", 0, ge=0, le=LAST_SEED)
    out: str | None = setting("the file; null: DATA.ROOT/cifar_cnn.safetensors", None)
    teacher: Any = part("comes with the track; must not be given, because no token is read")
    data: Any = part("the small track whose training images it learns")


class Against(Enum):
    documented = "documented"
    online = "online"
    plain = "plain"


@dataclass
class BenchSettings:
    steps: int = setting("steps per timed block", 5, ge=1, le=SIZE)
    rounds: int = setting(
        "number of rounds, in which the loops take turns; times are medians over rounds", 3, ge=1, le=SIZE
    )
    batches: int = setting("batches of random records, in the experiment's own stores", 8, ge=1, le=SIZE)
    against: Against | None = setting(
        "also times, in turns: the description's loop; the same step with the teacher (random weights) asked in it; "
        "the loop as one writes it first, over the same batches",
        None,
    )
    parts: bool = setting("also times the step without each of its optimisations", False)
    workers: int = setting("worker processes of the description's loader", 8, ge=1, le=WORKERS)
    folder: str = setting("a folder on the disk to read from", ".")


@dataclass
class Bench(Train):
    bench: BenchSettings = field(default_factory=BenchSettings)
    out: str | None = setting("a file for the table as JSON", None)


@dataclass
class Device:
    """The content of a file of conf/device."""

    name: str = setting("the name in a measurement's file, or a part of it")
    kind: DeviceKind = setting("kind of device, for autocast rules and attention kernels")
    flops_per_s: float | None = setting(
        "rate of dense bf16 products; null: unknown, so no lower bound of hours", ge=1, le=LARGEST
    )
    memory_bytes: float | None = setting("null: not checked", ge=1, le=LARGEST)


@dataclass
class Plan(Train):
    device: Any = part("the device for which hours and memory are predicted")
    measured: str | None = setting("a JSON file that `python -m urepa.bench out=FILE` wrote: expected hours", None)
    out: str | None = setting("a file for everything as JSON", None)


@dataclass
class Describe(Plan):
    out: str | None = setting("a folder for methodology.md and methodology.tex", None)


@dataclass
class OneBatch(Train):
    pass


@dataclass
class BenchReading:
    folder: str = setting("a folder on the disk to measure; the stores take half a megabyte a sample", ".")
    # far more than the description's loader prefetches (2 batches per worker)
    samples: int = setting("records in each store", 6000, ge=1, le=SIZE)
    batch_size: int = setting("records per batch", 128, ge=1, le=SIZE)
    workers: int = setting("worker processes of the description's loader", 8, ge=1, le=WORKERS)
    rounds: int = setting("number of rounds; rates are medians over rounds", 3, ge=1, le=SIZE)
    out: str | None = setting("a file for the table as JSON", None)


@dataclass
class Study:
    """The content of a file of conf/study: a table of arms."""

    overrides: list[str] = setting("overrides of every run, as on the command line of urepa.train")
    baseline: str = setting("the arm that the others are compared with")
    controls: dict[str, str] = setting("for arms that are compared with another arm than the baseline, that arm", {})
    arms: dict[str, list[str]] = setting("additional overrides by arm name; tables have the arms in this order")


@dataclass
class AblationGrid:
    cluster: Any = part("where the jobs run; cluster.KEY=VALUE are the settings of that launcher")
    study: Any = part("a study by name: its arms, their baseline and the overrides of all runs", None)
    arms: list[str] | None = setting(
        "as a,b,c: arms of the study (null: all); without study names in conf/ablation (null: all for the backbone)",
        None,
    )
    seeds: list[int] = setting("seeds of every arm", [0, 1, 2], ge=0, le=LAST_SEED)
    shards: int = setting("parallel jobs that make a latent track's caches", 8, ge=1, le=SIZE)
    stages: list[str] = setting("which stages to submit", ["preprocess", "verify", "train", "evaluate", "compare"])
    evaluate: str | None = setting("an option of conf/evaluation for the stage evaluate; null: the runs' own", None)
    measured: str | None = setting("a JSON file that `python -m urepa.bench out=FILE` wrote: expected hours", None)
    dry_run: bool = setting("print what would be submitted and its hours, and submit nothing", False)
    scripts: str | None = setting("with dry_run: a folder for every job's command and batch script", None)


@dataclass
class Status:
    folder: str = setting("where the jobs are recorded, as the only argument", "outputs/.jobs")


@dataclass
class WriteCaptions:
    folder: str = setting("CIFAR-10 as {train,test}/CLASS/*.png, as the only argument")


@dataclass
class IdxImages:
    images: str = setting("an IDX file of grey images, compressed with gzip or not")
    labels: str = setting("an IDX file with the class of each image")
    folder: str = setting("the new folder, in which every class gets a folder of PNG files")


class Baseline(Enum):
    base = "base"


@dataclass
class TextEncoderPlaces:
    model: str | None = setting("the same for the folder of a text encoder", None)
    llama: str | None = setting("the same for the folder of the Llama of text_encoder=hidream", None)


@dataclass
class ImageEncoderPlaces:
    model: str | None = setting("the same for the image encoder of conditions", None)


@dataclass
class DataPlaces:
    root: str | None = setting(
        "where the track's files are now; null: where they were in training",
        None,
        section="for a run that was trained elsewhere",
    )
    vae: str | None = setting("the same for the VAE", None)
    text_encoder: TextEncoderPlaces = field(default_factory=TextEncoderPlaces)
    image_encoder: ImageEncoderPlaces = field(default_factory=ImageEncoderPlaces)


@dataclass
class BackbonePlaces:
    weights: str | None = setting("where the base weights are now; null: where they were in training", None)


class ExportFormat(Enum):
    diffusers = "diffusers"
    kohya = "kohya"


@dataclass
class Export:
    run: str | None = setting("a run's folder, finished or not; its newest valid checkpoint's EMA weights", None)
    format: ExportFormat = setting(
        "diffusers: as its pipelines load it (a SiT: as published); kohya: a U-Net's LoRA as sd-scripts, ComfyUI and "
        "WebUIs load it",
        ExportFormat.diffusers,
    )
    out: str | None = setting("a new folder; null: RUN/export/step_..., with _kohya at its end in that format", None)
    push: str | None = setting(
        "OWNER/NAME on the Hugging Face hub: also uploads the export there, or one that is there already", None
    )
    private: bool = setting("with push: whether only you see the repository", True)
    data: DataPlaces = field(default_factory=DataPlaces)
    backbone: BackbonePlaces = field(default_factory=BackbonePlaces)


@dataclass
class Look:
    """Keys of the pictures; `urepa.evaluation.looking.Look` has the same defaults, with which training makes them."""

    run: str | None = setting("a run's folder, finished or not", None)
    step: Any = setting("a checkpoint's step, all of them (all), or the newest (newest); its EMA weights", "newest")
    images: int = setting("validation images, chosen by their ids", 6, ge=1, le=32)
    patch: list[float] = setting(
        "[ROW,COLUMN] of the token to which similarities are taken, as shares of the image's sides",
        [0.5, 0.5],
        ge=0,
        le=1,
    )
    noise: float = setting("the time at which tokens are read, as a share of the way to noise", 0.25, ge=0, le=1 - TINY)
    tap: str | None = setting("null: the tap that the run aligns or, without one, a middle one", None)
    sampler_steps: int = setting("of the samples", 20, ge=1, le=SIZE)
    guidance: float = setting("of the samples: classifier-free guidance; 1: none", 1.0, ge=0, le=LARGEST)
    out: str | None = setting("the file; null: RUN/look/step_....png", None)
    data: DataPlaces = field(default_factory=DataPlaces)
    backbone: BackbonePlaces = field(default_factory=BackbonePlaces)


def _seed_of_images() -> Any:
    return setting("seed of the noise, which depends only on seed, class and index", 0, ge=0, le=LAST_SEED)


@dataclass
class Images:
    """Keys of the requested images, for any source of the model."""

    run: str | None = setting(
        "a run's folder, finished or not; its newest valid checkpoint's EMA weights", None, section="the model"
    )
    checkpoint: str | None = setting(
        "published weights instead: a file or folder, or OWNER/NAME[@REVISION]/FILE on the hub", None
    )
    classes: Any = setting("ids and names, one or a list; null: all", None, section="the images")
    prompt: str | None = setting("the prompt, instead of classes, for a run that was trained on captions", None)
    prompts: str | None = setting("a text file with one prompt per line, instead of prompt", None)
    negative: str | None = setting(
        "with prompts and guidance: what the images are guided away from, in place of the null condition", None
    )
    image: str | None = setting(
        "an image file, for a run whose conditions have an image: the images are made under its tokens; null: without",
        None,
    )
    bucket: str | None = setting("shape of the images for a model with several shapes, as 48x80; null: the first", None)
    size: str | None = setting(
        "rows and columns of the images in pixels, as 512x768, where the backbone takes other shapes than those it was "
        "trained on; null: as in training",
        None,
    )
    n: int = setting("images of each class, or prompt", 4, ge=1, le=SIZE)
    sampler: Sampler | None = setting(
        "null: ddim for DDPM, euler for a flow; dpmsolver is for DDPM, heun and sde for a flow", None
    )
    steps: int = setting("of the sampler", 50, ge=1, le=SIZE)
    guidance: float = setting(
        "classifier-free guidance; 1: none. 4 to 8 for SD-1.5, less for a short run", 1.0, ge=0, le=LARGEST
    )
    guidance_text: float | None = setting(
        "for conditions of a text and an image, in place of guidance: the scale of the text; null: not guided",
        None,
        ge=0,
        le=LARGEST,
    )
    guidance_image: float | None = setting("the same of the image", None, ge=0, le=LARGEST)
    guidance_interval: list[float] = setting(
        "[LOW,HIGH], interval of a flow's times with guidance, in 0 to 1; 1 is noise", [0.0, 1.0]
    )
    seed: int = _seed_of_images()
    against: Baseline | None = setting("also images of the base weights from the same noise, a row above each", None)
    batch_size: int = setting("images at a time on each GPU; the size only changes rounding", 16, ge=1, le=SIZE)
    precision: Precision = setting("of the networks", Precision.fp32)
    out: str | None = setting("the folder; null: RUN/generated/REQUEST, or generated/CHECKPOINT/REQUEST", None)


@dataclass
class Generate(Images):
    data: DataPlaces = field(default_factory=DataPlaces)
    backbone: BackbonePlaces = field(default_factory=BackbonePlaces)


class GuidanceRule(Enum):
    cfg = "cfg"
    apg = "apg"


@dataclass
class OfTokenizer:
    """Keys of the commands that use the tokenizer of a run."""

    run: str | None = setting(
        "the folder of a run whose backbone is a tokenizer; its newest valid checkpoint's EMA weights", None
    )
    batch_size: int = setting("images at a time; the size only changes rounding", 16, ge=1, le=SIZE)
    data: DataPlaces = field(default_factory=DataPlaces)
    backbone: BackbonePlaces = field(default_factory=BackbonePlaces)


@dataclass
class Tokenize(OfTokenizer):
    images: str | None = setting("a folder of images, which may be in folders below it", None)
    out: str | None = setting("the file to write the codes to, NAME.safetensors", None)


@dataclass
class Detokenize(OfTokenizer):
    codes: str | None = setting("a file that `python -m urepa.tokenize` wrote", None)
    out: str | None = setting("the folder to write the images to, NAME.png each", None)
    keep: int | None = setting("how many of the first codes of an image are used; null: all", None, ge=1, le=SIZE)
    steps: int = setting("steps of the Euler sampler", 25, ge=1, le=SIZE)
    guidance: float = setting("guidance scale; 1: no guidance", 7.5, ge=0, le=LARGEST)
    rule: GuidanceRule = setting("cfg: classifier-free guidance; apg: adaptive projected guidance", GuidanceRule.apg)
    eta: float = setting("of apg: the share that is kept of the component parallel to the prediction", 0.0, ge=0, le=1)
    threshold: float = setting(
        "of apg: the largest norm of the difference between the predictions", 2.5, ge=0, le=LARGEST
    )
    momentum: float = setting("of apg: momentum of the running sum of differences", -0.5, ge=-1, le=1)
    seed: int = setting("seed of the noise, which depends only on seed and image", 0, ge=0, le=LAST_SEED)


@dataclass
class GenerateCheckpoint(Train, Images):
    """The keys of `train` describe the model to which the weights belong. Its seed is that of the images here."""

    seed: int = _seed_of_images()
