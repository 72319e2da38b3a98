"""What an experiment is composed of. Values and their reasons are in the YAML files, meanings are here."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from math import inf

from urepa.core.declared_keys import COUNT, LARGEST, LAST_STEP, SIZE, TINY, WORKERS, setting


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


@dataclass
class TinyUNet:
    _target_: str = "urepa.models.backbones.unet.tiny_unet"
    _partial_: bool = True
    block_out_channels: list[int] = setting(
        "channels of each resolution, the finest first; multiples of 32", ge=1, le=SIZE
    )
    attention: list[bool] = setting("whether each resolution has cross-attention")
    layers_per_block: int = setting("residual blocks of each resolution on the way down", ge=1, le=SIZE)
    cross_attention_dim: int = setting("width of the vector of a class", ge=1, le=SIZE)
    head_dim: int = setting("width of a head of attention", ge=1, le=SIZE)


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
    weights: str = setting('a hub id, a local diffusers folder, or "random"')
    prompts: str = setting("the .pt file of text embeddings, the null prompt last")
    gradient_checkpointing: bool = setting("recompute blocks in the backward pass: less memory, more time")


class SiTPositions(Enum):
    sincos = "sincos"
    learned = "learned"


@dataclass
class SiT:
    _target_: str = "urepa.models.backbones.sit.sit"
    _partial_: bool = True
    weights: str = setting('"random", or a file in the layout of the published checkpoints')
    patch: int = setting("side of a patch, in latent pixels", ge=1, le=SIZE)
    depth: int = setting("number of blocks", ge=1, le=SIZE)
    width: int = setting("width of a token", ge=1, le=SIZE)
    heads: int = setting("heads of attention in a block", ge=1, le=SIZE)
    qk_norm: bool = setting("LayerNorm on queries and keys")
    positions: SiTPositions = setting("added to the embedded patches: fixed sine-cosine ones, or learned ones")


@dataclass
class LoRA:
    _target_: str = "urepa.models.lora.add_lora"
    _partial_: bool = True
    rank: int = setting("rank of each adapter", ge=1, le=SIZE)
    alpha: int | None = setting(
        "the scale is alpha / rank; null: the rank, so that ranks compare at scale 1", ge=1, le=SIZE
    )
    dropout: float = setting("dropout on the input of an adapter", ge=0, le=1 - TINY)
    targets: Targets = setting("which layers have adapters: the projections of attention, or the 3x3 convolutions too")
    blocks: Blocks = setting("where these layers are: in the middle block, or in every block")


@dataclass
class NoLoRA:
    _target_: str = "urepa.models.lora.no_lora"
    _partial_: bool = True


@dataclass
class URepaLoss:
    _target_: str = "urepa.method.training_step.AlignmentLoss"
    lambda_max: float = setting("λ after its warm-up: the weight of the alignment terms", ge=0, le=LARGEST)
    warmup_steps: int = setting("updates over which λ rises from 0", ge=0, le=LARGEST)
    manifold_weight: float = setting("w: the weight of the manifold loss beside the token loss", ge=0, le=LARGEST)
    level: Level = setting(
        "of the manifold loss: similarities between samples, between the tokens of each, or the mean of both losses"
    )
    taps: dict[str, float] = setting(
        "the aligned taps, each with its weight in the mean of the alignment terms", ge=0, le=LARGEST
    )
    teachers: dict[str, float] = setting(
        "with teacher=several: weights by a teacher's name; 1 where none is given", {}, ge=0, le=LARGEST
    )
    spike_threshold: float = setting("a larger manifold loss after the warm-up counts as a spike", ge=0, le=inf)
    manifold_clip: float | None = setting(
        "caps the manifold loss (no gradient above it); null: no cap", None, ge=0, le=LARGEST
    )
    spatial_norm: float | None = setting(
        "share of an image's mean token that is subtracted from the teacher's tokens; null: left as they are",
        None,
        ge=0,
        le=1,
    )
    stop_step: int | None = setting(
        "from this update on λ is 0 and only validations ask the teacher; null: never", None, ge=1, le=LARGEST
    )
    time_power: float = setting(
        "a sample's λ falls with its share of noise s as (1 - s)^power, mean 1; 0: all have one λ",
        0.0,
        ge=0,
        le=LARGEST,
    )
    diffusion_fraction: float = setting(
        "p/q: p random samples of every q have a diffusion term; 0: none has", 1.0, ge=0, le=1
    )


@dataclass
class NoLoss:
    _target_: str = "urepa.method.training_step.DiffusionOnly"


@dataclass
class PixelTrack:
    _target_: str = "urepa.data.tracks.pixels.PixelTrack"
    name: str = setting("the track's name")
    root: str = setting("the track's folder; its caches go below it")
    source: Source = setting("how the images are stored")
    images: str = setting("where the images are: a folder, or a repository's name for source=hub")
    limit: int | None = setting("training images, class-balanced; null: all", ge=1, le=COUNT)
    validation_images: int = setting("images of the validation set", ge=1, le=COUNT)
    test_images: int = setting("images of the test set", ge=1, le=COUNT)
    channels: int = setting("1 for grey images, 3 for colour", ge=1, le=SIZE)
    image_size: int = setting("side of the squares, pixels", ge=1, le=SIZE)
    unshuffle: int = setting("x0 has channels·unshuffle² channels at image_size / unshuffle", ge=1, le=SIZE)
    scale: float = setting(
        "of x0; chosen so that its variance is about 1, as a VAE's scaling factor does", ge=TINY, le=LARGEST
    )
    num_classes: int = setting(
        "number of classes; data=folder counts the class folders where none is given", ge=1, le=SIZE
    )
    cfg_dropout: float = setting("probability that a training sample loses its class", ge=0, le=1)
    build_on_first_use: bool = setting("make the caches when a run first needs them")
    flip: bool = setting("train on mirror images as often; the caches then hold both", False)
    online_teacher: bool = setting("ask the teacher while training instead of reading its cache", False)
    max_skipped: float = setting("the share of images that may be unreadable; 0: none may", 0.0, ge=0, le=1)


@dataclass
class LatentTrack:
    _target_: str = "urepa.data.tracks.latents.LatentTrack"
    name: str = setting("the track's name")
    root: str = setting("the folder that holds what is made")
    source: Source = setting("how the images are stored")
    images: str = setting("where the images are: a folder, or a repository's name for source=hub")
    train_images: int | None = setting("training images, class-balanced; null: all", ge=1, le=COUNT)
    val_images: int | None = setting("validation images, class-balanced; null: all", ge=1, le=COUNT)
    image_size: int = setting("side of the squares, pixels", ge=1, le=SIZE)
    vae: str = setting("a hub id or a local diffusers folder")
    text: str | None = setting("the same, for the text encoder of the prompts; null: the backbone takes class ids")
    class_names: str | None = setting(
        '"imagenet", or a file with a name a line; null: only prompts and grids need names'
    )
    moments: bool = setting("keep the posterior's mean and standard deviation, to sample latents in training")
    token_dtype: TokenDtype = setting("how tokens are stored; int8: in groups of 128 with a scale each, half the disk")
    max_skipped: float = setting(
        "the share of images that may be unreadable (above 0: one at least); all are listed", ge=0, le=1
    )
    latents: str = setting("the folder of latents")
    tokens: str = setting("the folder of the teacher's tokens")
    train: str = setting("CSV of sample_id,class_id,path,split for training")
    val: str = setting("the same for validation")
    prompts: str = setting("the .pt file of the prompts' embeddings")
    latent_shape: list[int] = setting("channels, rows and columns of a latent", ge=1, le=SIZE)
    num_classes: int = setting("number of classes", ge=1, le=SIZE)
    cfg_dropout: float = setting("probability that a training sample loses its class", ge=0, le=1)
    flip: bool = setting("train on mirror images as often; the caches then hold both", False)
    online_teacher: bool = setting("ask the teacher about the images stage's squares, without its cache", False)
    online_latents: bool = setting(
        "encode the images stage's squares while training, without a cache of latents", False
    )
    stage_to: str | None = setting("a node-local folder to copy the caches to before training; null: none", None)


@dataclass
class AdamW:
    _target_: str = "urepa.training.optimizer.AdamW"
    lr: dict[str, float] = setting("peak learning rate by part: backbone, lora, head", ge=0, le=1)
    weight_decay: dict[str, float] = setting("weight decay by part", ge=0, le=LARGEST)
    betas: list[float] = setting("decay rates of the two moments, from 0 to below 1", ge=-LARGEST, le=LARGEST)
    eps: float = setting("added to the root of the second moment", ge=0, le=LARGEST)
    warmup_ratio: float = setting("share of max_steps over which the learning rate rises from 0", ge=0, le=1)
    final_ratio: float = setting("share of the peak at which the cosine ends; 1: the rate is constant", 0.0, ge=0, le=1)


@dataclass
class Trainer:
    max_steps: int = setting("updates of the whole run", ge=1, le=LAST_STEP)
    batch_size: int = setting("global: over all GPUs and accumulated micro-batches", ge=1, le=SIZE)
    accumulation: int = setting("micro-batches of an update on each GPU", 1, ge=1, le=SIZE)
    precision: Precision = setting("of the forward pass", Precision.fp32)
    frozen: Precision = setting("of the frozen weights; bf16 needs precision=bf16", Precision.fp32)
    channels_last: bool = setting("memory format of the backbone", False)
    attention: Kernel | None = setting("the attention kernel to try first; null: PyTorch's order", None)
    compile: bool = setting("compile the backbone's repeated blocks; the first step then takes a minute or two", False)
    clip_norm: float | None = setting("the gradient's largest norm; null: not clipped", ge=TINY, le=LARGEST)
    ema_decay: float = setting("decay of the average of the weights", ge=0, le=1 - TINY)
    ema_warmup: bool = setting(
        "true: the decay after n updates is min(ema_decay, (1 + n) / (10 + n)); for short runs", False
    )
    log_every: int = setting("updates between two rows of metrics", ge=1, le=LARGEST)
    validate_every: int = setting("updates between two validations", ge=1, le=LARGEST)
    validation_group: int = setting("samples in a validation batch, whatever the number of GPUs", ge=1, le=LARGEST)
    checkpoint_every: int = setting("updates between two checkpoints", ge=1, le=LARGEST)
    evaluate_every: int | None = setting(
        "updates between two turns of `evaluation` during training; null: only after it", None, ge=1, le=LARGEST
    )
    evaluation_share: float = setting(
        "of the time trained: a turn that would take more, at the last one's cost, is left out; the first always runs",
        0.1,
        ge=0,
        le=LARGEST,
    )
    keep_last: int = setting("checkpoints that are kept, besides the best", 2, ge=1, le=LARGEST)
    max_skipped: int = setting("non-finite steps in a row before training stops", 10, ge=1, le=LARGEST)
    deterministic: bool = setting("cuDNN takes repeatable kernels and does not search for fast ones", False)
    threads: int | None = setting("CPU threads; null: PyTorch's choice", None, ge=1, le=WORKERS)


@dataclass
class MLflow:
    _target_: str = "urepa.runs.mlflow_sender.MLflowShipper"
    _partial_: bool = True
    uri: str = setting("the store: sqlite:///FILE or http://HOST:PORT")
    experiment_name: str = setting("the experiment that gets the runs")
    tags: dict[str, str] = setting("further tags of the run", {})
    patience: float = setting("seconds to wait for MLflow when a run ends", ge=0, le=86_400)


@dataclass
class NoTracking:
    _target_: str = "urepa.runs.mlflow_sender.NoShipper"
    _partial_: bool = True
