"""What an experiment is composed of. Values and their reasons are in the YAML files, meanings are here."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

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
    _target_: str = "urepa.models.backbones.unet.tiny_unet"
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
    _target_: str = "urepa.models.backbones.sd15.sd15"
    _partial_: bool = True
    weights: str = MISSING  # a hub id, a local diffusers folder, or "random"
    prompts: str = MISSING  # the .pt file of text embeddings, the null prompt last
    gradient_checkpointing: bool = MISSING  # recompute blocks backward: less memory, more time


class SiTPositions(Enum):
    sincos = "sincos"
    learned = "learned"


@dataclass
class SiT:
    _target_: str = "urepa.models.backbones.sit.sit"
    _partial_: bool = True
    weights: str = MISSING  # "random", or a file in the published checkpoints' layout
    patch: int = MISSING  # side of a patch, in latent pixels
    depth: int = MISSING  # blocks
    width: int = MISSING
    heads: int = MISSING  # of attention
    qk_norm: bool = MISSING  # LayerNorm on queries and keys
    positions: SiTPositions = MISSING  # added to the embedded patches: fixed sine-cosine ones, or learned ones


@dataclass
class LoRA:
    _target_: str = "urepa.models.lora.add_lora"
    _partial_: bool = True
    rank: int = MISSING
    alpha: int | None = MISSING  # null: the rank, so that ranks compare at scale 1
    dropout: float = MISSING
    targets: Targets = MISSING
    blocks: Blocks = MISSING


@dataclass
class NoLoRA:
    _target_: str = "urepa.models.lora.no_lora"
    _partial_: bool = True


@dataclass
class ConvHead:
    _target_: str = "urepa.models.heads.ConvHead"
    _partial_: bool = True
    depth: int = MISSING  # 1x1 convolutions; 2 is the document's
    upsample: Upsample = MISSING  # to the teacher's grid: after or before projecting


@dataclass
class SpatialHead:
    _target_: str = "urepa.models.heads.SpatialHead"
    _partial_: bool = True


@dataclass
class HiddenSpatialHead(SpatialHead):
    _target_: str = "urepa.models.heads.HiddenSpatialHead"
    hidden: int = MISSING  # width between its two layers


@dataclass
class MLPHead:
    _target_: str = "urepa.models.heads.MLPHead"
    _partial_: bool = True
    hidden: int = MISSING  # width of the two inner layers


@dataclass
class TimeMLPHead(MLPHead):
    _target_: str = "urepa.models.heads.TimeMLPHead"


@dataclass
class EfficientNet:
    _target_: str = "urepa.models.teachers.efficientnet.EfficientNetLite0"
    image_size: int = MISSING  # pixels, a multiple of 32
    grid: list[int] = MISSING  # rows and columns of tokens after pooling
    stride: int = MISSING  # of its map: 8, 16 or 32, the last


@dataclass
class EfficientNetLite2(EfficientNet):
    _target_: str = "urepa.models.teachers.efficientnet.EfficientNetLite2"


@dataclass
class Several:
    _target_: str = "urepa.models.teachers.several_teachers.Several"
    teachers: dict[str, Any] = field(default_factory=dict)  # by name


class Family(Enum):
    dinov2 = "dinov2"
    dinov2_registers = "dinov2_registers"
    dinov3 = "dinov3"
    clip = "clip"
    siglip = "siglip"
    mae = "mae"


class Positions(Enum):
    meta = "meta"
    timm = "timm"
    transformers = "transformers"


@dataclass
class ViT:
    _target_: str = "urepa.models.teachers.vit.ViT"
    family: Family = MISSING
    model: str = MISSING  # a hub id, a local folder or Meta's own .pth of DINOv2 or DINOv3; its last part is recorded
    image_size: int = MISSING  # pixels, a multiple of patch
    patch: int = MISSING  # pixels
    grid: list[int] = MISSING  # rows and columns of tokens after pooling
    width: int = MISSING
    positions: Positions | None = None  # whose resampling of DINOv2's positions off 518 px; null in the other families


@dataclass
class DDPMEpsilon:
    _target_: str = "urepa.method.objectives.DDPMEpsilon"
    beta_start: float = MISSING
    beta_end: float = MISSING
    beta_schedule: BetaSchedule = MISSING
    timesteps: int = MISSING


@dataclass
class DDPMVelocity(DDPMEpsilon):
    _target_: str = "urepa.method.objectives.DDPMVelocity"


class FlowPath(Enum):
    linear = "linear"
    cosine = "cosine"


class TimeDraw(Enum):
    uniform = "uniform"
    lognormal = "lognormal"


@dataclass
class Flow:
    _target_: str = "urepa.method.objectives.Flow"
    path: FlowPath = MISSING  # from data to noise
    draw: TimeDraw = MISSING  # of the training times


@dataclass
class URepaLoss:
    _target_: str = "urepa.method.training_step.AlignmentLoss"
    lambda_max: float = MISSING  # λ after warm-up
    warmup_steps: int = MISSING  # of λ
    manifold_weight: float = MISSING  # w
    level: Level = MISSING  # of the manifold loss
    taps: dict[str, float] = MISSING  # tap: its weight in the mean of the alignment terms
    teachers: dict[str, float] = field(default_factory=dict)  # with teacher=several: their weights there, 1 if not said
    spike_threshold: float = MISSING  # a larger manifold loss after the warm-up counts as a spike
    manifold_clip: float | None = None  # caps the manifold loss (no gradient above it)
    spatial_norm: float | None = None  # share of an image's mean token taken off the teacher's; null: left as they are
    stop_step: int | None = None  # from this update on λ is 0 and validations alone ask the teacher; null: never
    time_power: float = 0.0  # a sample's λ falls with its share of noise s as (1 − s)^power, mean 1; 0: all have one λ
    diffusion_fraction: float = 1.0  # p/q: p random samples of every q have a diffusion term; 0: none has


@dataclass
class NoLoss:
    _target_: str = "urepa.method.training_step.DiffusionOnly"


@dataclass
class PixelTrack:
    _target_: str = "urepa.data.tracks.pixels.PixelTrack"
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
    num_classes: int = MISSING  # data=folder counts the class folders where none is given
    cfg_dropout: float = MISSING  # probability that a training sample loses its class
    build_on_first_use: bool = MISSING
    flip: bool = False  # train on mirror images as often; the caches then hold both
    online_teacher: bool = False  # ask the teacher while training instead of reading its cache
    max_skipped: float = 0.0  # the share of images that may be unreadable, as in a LatentTrack; 0: none may


@dataclass
class LatentTrack:
    _target_: str = "urepa.data.tracks.latents.LatentTrack"
    name: str = MISSING
    root: str = MISSING  # the folder that holds what is made
    source: Source = MISSING
    images: str = MISSING  # where the images are: a folder, or a repository's name for source=hub
    train_images: int | None = MISSING  # class-balanced; null takes all
    val_images: int | None = MISSING
    image_size: int = MISSING  # of the squares, pixels
    vae: str = MISSING  # a hub id or a local diffusers folder
    text: str | None = MISSING  # the same, for the text encoder of the prompts; null: the backbone takes class ids
    class_names: str | None = MISSING  # "imagenet", or a file with a name a line; null: only prompts and grids ask
    moments: bool = MISSING  # keep the posterior's mean and standard deviation, to sample latents in training
    token_dtype: TokenDtype = MISSING
    max_skipped: float = MISSING  # the share of images that may be unreadable (above 0: one at least); all are listed
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
    online_latents: bool = False  # encode the images stage's squares while training, without a cache of latents
    stage_to: str | None = None  # a node-local folder to copy the caches to before training


@dataclass
class AdamW:
    _target_: str = "urepa.training.optimizer.AdamW"
    lr: dict[str, float] = MISSING  # peak learning rate per part: backbone, lora, head
    weight_decay: dict[str, float] = MISSING  # per part
    betas: list[float] = MISSING
    eps: float = MISSING
    warmup_ratio: float = MISSING  # of max_steps
    final_ratio: float = 0.0  # of the peak, where the cosine ends; 1: the rate is constant


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
    ema_warmup: bool = False  # true: the decay after n updates is min(ema_decay, (1 + n) / (10 + n)); for short runs
    log_every: int = MISSING
    validate_every: int = MISSING
    validation_group: int = MISSING  # samples in a validation batch, whatever the number of GPUs
    checkpoint_every: int = MISSING
    evaluate_every: int | None = None  # `evaluation` in the course of training too; null: after it alone
    # of the time trained: a turn that would take more, at the last one's cost, is left out; the first always runs
    evaluation_share: float = 0.1
    keep_last: int = 2  # checkpoints, besides the best
    max_skipped: int = 10  # non-finite steps in a row before training stops
    deterministic: bool = False  # cuDNN takes repeatable kernels and does not search for fast ones (spec 000 §8.3)
    threads: int | None = None  # CPU threads; null leaves PyTorch's choice


@dataclass
class MLflow:
    _target_: str = "urepa.runs.mlflow_sender.MLflowShipper"
    _partial_: bool = True
    uri: str = MISSING
    experiment_name: str = MISSING
    tags: dict[str, str] = field(default_factory=dict)
    patience: float = MISSING  # seconds to wait for MLflow when a run ends


@dataclass
class NoTracking:
    _target_: str = "urepa.runs.mlflow_sender.NoShipper"
    _partial_: bool = True
