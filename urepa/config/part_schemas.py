"""Schemas of an experiment's parts. Values and their reasons are in the YAML files, meanings are here."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from urepa.core.comparability import EVERYTHING
from urepa.core.declared_keys import LARGEST, LAST_STEP, SIZE, TINY, WORKERS, setting


class Precision(Enum):
    fp32 = "fp32"
    bf16 = "bf16"


class Kernel(Enum):
    cudnn = "cudnn"
    flash = "flash"
    efficient = "efficient"


class Sharding(Enum):
    fsdp2 = "fsdp2"


class DeviceKind(Enum):
    cuda = "cuda"
    cpu = "cpu"


@dataclass
class Trainer:
    max_steps: int = setting("updates of the whole run", ge=1, le=LAST_STEP, unpairs=True)
    batch_size: int = setting(
        "global batch size, over all GPUs and accumulated micro-batches", ge=1, le=SIZE, unpairs=True
    )
    accumulation: int = setting("micro-batches of an update on each GPU", 1, ge=1, le=SIZE)
    precision: Precision = setting("of the forward pass", Precision.fp32)
    frozen: Precision = setting("precision of the frozen weights; bf16 needs precision=bf16", Precision.fp32)
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
    validation_group: int = setting(
        "samples in a validation batch, for any number of GPUs", ge=1, le=LARGEST, alters=(EVERYTHING,)
    )
    checkpoint_every: int = setting("updates between two checkpoints", ge=1, le=LARGEST)
    evaluate_every: int | None = setting(
        "updates between evaluations during training; null: only after it", None, ge=1, le=LARGEST
    )
    evaluation_share: float = setting(
        "largest share of training time for evaluations; a longer one is skipped, except the first",
        0.1,
        ge=0,
        le=LARGEST,
    )
    look_every: int | None = setting(
        "updates between two sheets of pictures, RUN/look/step_....png, during training; null: none",
        None,
        ge=1,
        le=LARGEST,
    )
    look_share: float = setting(
        "largest share of training time for pictures; a longer one is skipped, except the first", 0.02, ge=0, le=LARGEST
    )
    keep_last: int = setting("checkpoints that are kept, besides the best", 2, ge=1, le=LARGEST)
    max_skipped: int = setting("non-finite steps in a row before training stops", 10, ge=1, le=LARGEST)
    skip_spikes: bool = setting(
        "skip updates whose manifold loss is above loss.spike_threshold after the warm-up", False
    )
    sharding: Sharding | None = setting(
        "fsdp2: each GPU holds a part of weights, gradients and optimiser state; null: each holds all", None
    )
    deterministic: bool = setting("cuDNN uses deterministic kernels and does not benchmark", False)
    threads: int | None = setting("CPU threads; null: PyTorch's choice", None, ge=1, le=WORKERS)


@dataclass
class WarmStart:
    checkpoint: str | None = setting(
        "starts a new run from the weights of another: a run's folder (the EMA weights of its newest checkpoint), or a "
        "file of tensors by parameter name, .safetensors or torch's",
        None,
    )
    allow_missing: list[str] = setting(
        "patterns of parameters that the checkpoint may lack; they keep their initial values", []
    )
    allow_shape: list[str] = setting(
        "patterns of parameters whose shape may differ; they keep their initial values", []
    )
    allow_unused: list[str] = setting("patterns of the checkpoint's weights that this run may not have", [])


@dataclass
class Arm:
    """Metadata in an ablation file, with which `urepa.training.checks.combinations` compares a run."""

    families: list[str] = setting("families of the backbones that the arm is for")
    changes: list[str] = setting("dotted keys, all and only those in which the arm differs from its baseline")


@dataclass
class Moved:
    root: str | None = setting("where the caches are now; null: where they were in training", None)
