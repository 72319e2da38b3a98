"""The schema of every config: a mistyped key, type or choice fails while composing, before torch loads.

One dataclass per kind of part; `conf/<group>/<option>.yaml` starts from one of them. Values and their
reasons are in the YAML files, meanings are here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING


class BetaSchedule(Enum):
    linear = "linear"
    scaled_linear = "scaled_linear"


class Level(Enum):
    sample = "sample"
    token = "token"
    both = "both"


class Precision(Enum):
    fp32 = "fp32"
    bf16 = "bf16"


class Kernel(Enum):
    cudnn = "cudnn"
    flash = "flash"
    efficient = "efficient"


class Source(Enum):
    digits = "digits"
    folder = "folder"
    cifar_binary = "cifar_binary"
    parquet = "parquet"
    hub = "hub"


class TokenDtype(Enum):
    float16 = "float16"
    int8 = "int8"  # in groups of 128, half the disk


class DeviceKind(Enum):
    cuda = "cuda"
    cpu = "cpu"


class Upsample(Enum):
    after = "after"
    before = "before"


@dataclass
class TinyUNet:
    _target_: str = "urepa.backbones.unet.tiny_unet"
    _partial_: bool = True
    block_out_channels: list[int] = MISSING  # one per resolution, each a multiple of 32
    attention: list[bool] = MISSING  # cross-attention at this resolution?
    layers_per_block: int = MISSING
    cross_attention_dim: int = MISSING
    head_dim: int = MISSING


class Targets(Enum):
    attention = "attention"
    attention_conv = "attention_conv"


class Blocks(Enum):
    mid = "mid"
    all = "all"


@dataclass
class SD15:
    _target_: str = "urepa.backbones.sd15.sd15"
    _partial_: bool = True
    weights: str = MISSING  # a hub id, a local diffusers folder, or "random"
    prompts: str = MISSING  # the .pt file of text embeddings, the null prompt last
    gradient_checkpointing: bool = MISSING  # recompute blocks backward: less memory, more time


@dataclass
class LoRA:
    _target_: str = "urepa.lora.add_lora"
    _partial_: bool = True
    rank: int = MISSING
    alpha: int | None = MISSING  # null: the rank, so that ranks compare at scale 1
    dropout: float = MISSING
    targets: Targets = MISSING
    blocks: Blocks = MISSING


@dataclass
class NoLoRA:
    _target_: str = "urepa.lora.no_lora"
    _partial_: bool = True


@dataclass
class ConvHead:
    _target_: str = "urepa.heads.ConvHead"
    _partial_: bool = True
    depth: int = MISSING  # 1x1 convolutions; 2 is the document's
    upsample: Upsample = MISSING  # to the teacher's grid: after or before projecting


@dataclass
class EfficientNet:
    _target_: str = "urepa.teachers.efficientnet.EfficientNetLite0"
    image_size: int = MISSING  # pixels, a multiple of 32
    grid: list[int] = MISSING  # rows and columns of tokens after pooling


class Family(Enum):
    dinov2 = "dinov2"
    dinov2_registers = "dinov2_registers"
    dinov3 = "dinov3"
    clip = "clip"
    siglip = "siglip"
    mae = "mae"


@dataclass
class ViT:
    _target_: str = "urepa.teachers.vit.ViT"
    family: Family = MISSING
    model: str = MISSING  # a hub id, a local folder or Meta's dinov2_*.pth; its last part is recorded in the cache
    image_size: int = MISSING  # pixels, a multiple of patch
    patch: int = MISSING  # pixels
    grid: list[int] = MISSING  # rows and columns of tokens after pooling
    width: int = MISSING


@dataclass
class DDPM:
    _target_: str = MISSING
    beta_start: float = MISSING
    beta_end: float = MISSING
    beta_schedule: BetaSchedule = MISSING
    timesteps: int = MISSING


@dataclass
class URepaLoss:
    _target_: str = "urepa.alignment.AlignmentLoss"
    lambda_max: float = MISSING  # λ after warm-up
    warmup_steps: int = MISSING  # of λ
    manifold_weight: float = MISSING  # w
    level: Level = MISSING  # of the manifold loss
    taps: dict[str, float] = MISSING  # tap: its weight in the mean of the alignment terms
    spike_threshold: float = MISSING  # a larger manifold loss after the warm-up counts as a spike
    manifold_clip: float | None = None  # caps the manifold loss (no gradient above it)
    diffusion_fraction: float = 1.0  # p/q: p random samples of every q have a diffusion term; 0: none has


@dataclass
class NoLoss:
    _target_: str = "urepa.alignment.DiffusionOnly"


@dataclass
class PixelTrack:
    _target_: str = "urepa.data.pixels.PixelTrack"
    name: str = MISSING
    root: str = MISSING  # the track's folder; its caches go below it
    source: Source = MISSING
    images: str = MISSING  # where the images are: a folder, or a repository's name for source=hub
    limit: int | None = MISSING  # training images, class-balanced; null takes all
    validation_images: int = MISSING
    test_images: int = MISSING
    channels: int = MISSING
    image_size: int = MISSING
    unshuffle: int = MISSING  # x0 has channels·unshuffle² channels at image_size / unshuffle
    scale: float = MISSING  # of x0; chosen so that its variance is about 1, as a VAE's scaling factor does
    num_classes: int = MISSING
    cfg_dropout: float = MISSING  # probability that a training sample loses its class
    build_on_first_use: bool = MISSING
    flip: bool = False  # train on mirror images as often; the caches then hold both
    online_teacher: bool = False  # ask the teacher while training instead of reading its cache


@dataclass
class LatentTrack:
    _target_: str = "urepa.data.latents.LatentTrack"
    name: str = MISSING
    root: str = MISSING  # the folder that holds what is made
    source: Source = MISSING
    images: str = MISSING  # where the images are: a folder, or a repository's name for source=hub
    train_images: int | None = MISSING  # class-balanced; null takes all
    val_images: int | None = MISSING
    image_size: int = MISSING  # of the squares, pixels
    vae: str = MISSING  # a hub id or a local diffusers folder
    text: str = MISSING  # the same, for the text encoder of the prompts
    class_names: str = MISSING  # "imagenet", or a file with a name a line
    moments: bool = MISSING  # keep the posterior's mean and standard deviation, to sample latents in training
    token_dtype: TokenDtype = MISSING
    max_skipped: float = MISSING  # the share of images that may be unreadable before a build stops
    latents: str = MISSING
    tokens: str = MISSING
    train: str = MISSING  # CSV of sample_id,class_id,path,split
    val: str = MISSING
    prompts: str = MISSING
    latent_shape: list[int] = MISSING
    num_classes: int = MISSING
    cfg_dropout: float = MISSING
    flip: bool = False  # train on mirror images as often; the caches then hold both
    online_teacher: bool = False  # ask the teacher about the images stage's squares, without its cache
    stage_to: str | None = None  # a node-local folder to copy the caches to before training


@dataclass
class AdamW:
    _target_: str = "urepa.optimizer.AdamW"
    lr: dict[str, float] = MISSING  # peak learning rate per part: backbone, lora, head
    weight_decay: dict[str, float] = MISSING  # per part
    betas: list[float] = MISSING
    eps: float = MISSING
    warmup_ratio: float = MISSING  # of max_steps


@dataclass
class Trainer:
    max_steps: int = MISSING
    batch_size: int = MISSING  # global: over all GPUs and accumulated micro-batches
    accumulation: int = 1
    precision: Precision = Precision.fp32
    frozen: Precision = Precision.fp32  # frozen weights; bf16 needs precision=bf16
    channels_last: bool = False  # memory format of the backbone
    attention: Kernel | None = None  # the kernel to try first; null: PyTorch's order
    compile: bool = False  # the backbone's repeated blocks; the first step then takes a minute or two
    clip_norm: float | None = MISSING
    ema_decay: float = MISSING
    log_every: int = MISSING
    validate_every: int = MISSING
    validation_group: int = MISSING  # samples in a validation batch, whatever the number of GPUs
    checkpoint_every: int = MISSING
    keep_last: int = 2  # checkpoints, besides the best
    max_skipped: int = 10  # non-finite steps in a row before training stops
    deterministic: bool = False  # cuDNN takes repeatable kernels and does not search for fast ones (spec 000 §8.3)
    threads: int | None = None  # CPU threads; null leaves PyTorch's choice


@dataclass
class MLflow:
    _target_: str = "urepa.tracking.MLflowShipper"
    _partial_: bool = True
    uri: str = MISSING
    experiment_name: str = MISSING
    tags: dict[str, str] = field(default_factory=dict)
    patience: float = MISSING  # seconds to wait for MLflow when a run ends


@dataclass
class NoTracking:
    _target_: str = "urepa.tracking.NoShipper"
    _partial_: bool = True


@dataclass
class SampleGrid:
    _target_: str = "urepa.evaluation.samples.SampleGrid"
    per_class: int = MISSING
    shown_per_class: int = MISSING
    max_classes: int = MISSING
    sampler_steps: int = MISSING
    guidance: float = MISSING
    knn: int | None = MISSING  # neighbours that name the samples, among training images; null: not asked


@dataclass
class TapProbe:
    _target_: str = "urepa.evaluation.probe.TapProbe"
    tap: str = MISSING
    timestep: int = MISSING
    knn: int = MISSING
    train_images: int = MISSING
    test_images: int = MISSING


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
    out: str | None = MISSING
    order: list[str] = MISSING


class Sampler(Enum):
    ddim = "ddim"
    dpmsolver = "dpmsolver"  # DPM-Solver++(2M)
    euler = "euler"


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
class Generate(OfRun):
    classes: list[int] | None = None  # ids; null: all
    n: int = MISSING  # images of each class
    sampler: Sampler = MISSING
    steps: int = MISSING
    guidance: float = MISSING
    seed: int = MISSING
    against: Baseline | None = None  # base: the same noise through the base weights without LoRA, beside it
    batch_size: int = MISSING  # images at a time on each GPU
    precision: Precision = Precision.fp32


@dataclass
class Export(OfRun):
    pass


def register() -> None:
    """Puts the schema where the YAML files' defaults lists find it."""
    store = ConfigStore.instance()
    store.store(name="train_schema", node=Train)
    store.store(name="bench_schema", node=Bench)
    store.store(name="bench_reading_schema", node=BenchReading)
    store.store(name="evaluate_schema", node=Evaluate)
    store.store(name="plan_schema", node=Plan)
    store.store(name="compare_schema", node=Compare)
    store.store(name="preprocess_schema", node=Preprocess)
    store.store(name="ablation_grid_schema", node=AblationGrid)
    store.store(name="generate_schema", node=Generate)
    store.store(name="export_schema", node=Export)
    nodes = {
        "tiny_unet": TinyUNet,
        "sd15": SD15,
        "lora": LoRA,
        "vit": ViT,
        "latent_track": LatentTrack,
        "no_lora": NoLoRA,
        "conv_head": ConvHead,
        "efficientnet": EfficientNet,
        "ddpm": DDPM,
        "urepa_loss": URepaLoss,
        "no_loss": NoLoss,
        "pixel_track": PixelTrack,
        "adamw": AdamW,
        "trainer": Trainer,
        "mlflow": MLflow,
        "no_tracking": NoTracking,
        "sample_grid": SampleGrid,
        "tap_probe": TapProbe,
        "device": Device,
    }
    for name, node in nodes.items():
        store.store(group="schema", name=name, node=node)
