"""The memory of each GPU when several share a run: with all weights on each (DDP), and with trainer.sharding=fsdp2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from urepa.method.training_step import AlignedModel

if TYPE_CHECKING:
    from urepa.costs.estimate import Plan

GPUS = (1, 2, 4, 8, 16, 32, 64)
DIVIDED = ("frozen weights", "trainable weights", "optimiser", "EMA")  # of `weight_bytes`
GATHERED_BLOCKS = 2  # the one that computes, and the next one


def weight_bytes(model: nn.Module, states: int) -> dict[str, int]:
    """Bytes that are on the device from the first step to the last. The optimiser keeps `states` copies of the trained
    weights (AdamW: two moments) and EMA keeps one, in their precision."""
    trains = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    return {
        "frozen weights": sum(p.nbytes for p in model.parameters() if not p.requires_grad),
        "buffers": sum(b.nbytes for b in model.buffers()),
        "trainable weights": trains,
        "gradients": trains,
        "optimiser": states * trains,
        "EMA": trains,
    }


@dataclass(frozen=True)
class Units:
    """Bytes of what FSDP2 gathers together, weights and their gradients: the largest repeated block, and all that is in
    none, which stays gathered from the forward to the backward pass."""

    block: int
    rest: int


def units_of(model: AlignedModel) -> Units:
    """The units into which `urepa.training.sharding.Shards` divides a model."""
    backbone: Any = model.backbone
    blocks = [module for module in backbone.modules() if type(module).__name__ in getattr(backbone, "regions", ())]
    inside = {id(p) for block in blocks for p in block.parameters()}
    return Units(
        block=max((sum(map(_gathered_bytes, block.parameters())) for block in blocks), default=0),
        rest=sum(_gathered_bytes(p) for p in model.parameters() if id(p) not in inside),
    )


def _gathered_bytes(parameter: nn.Parameter) -> int:
    return parameter.nbytes * (2 if parameter.requires_grad else 1)


@dataclass(frozen=True)
class GpuMemory:
    """Peaks of each of `gpus`, in bytes, without workspaces."""

    gpus: int
    whole: int  # all weights on each
    sharded: int  # with trainer.sharding=fsdp2


def gpu_memory(planned: Plan) -> list[GpuMemory]:
    """The memory for each number of GPUs that divides the micro-batch. What a step saves for its backward pass is taken
    to be proportional to its samples, and to be there with all gradients (an upper bound of more than one GPU)."""
    return [_with(planned, gpus) for gpus in GPUS if planned.micro_batch % gpus == 0]


def _with(planned: Plan, gpus: int) -> GpuMemory:
    weights, units = planned.counted.weights, planned.counted.units
    gradients = weights["gradients"]
    saved = max(planned.counted.step.peak - gradients, planned.saved_bytes) // gpus
    divided = sum(weights[name] for name in DIVIDED)
    others = sum(size for name, size in weights.items() if name not in (*DIVIDED, "gradients"))
    accumulated = gradients if planned.settings.accumulation > 1 else 0
    step = others + (divided + gradients) // gpus + units.rest + GATHERED_BLOCKS * units.block + saved
    validation = others + divided // gpus + weights["frozen weights"] + weights["trainable weights"]
    buckets = gradients if gpus > 1 else 0  # DDP's own copies, in which gradients travel
    whole = others + divided + accumulated + buckets + min(planned.counted.step.peak, gradients + saved)
    return GpuMemory(gpus, whole, max(step, validation) if gpus > 1 else whole)


def table(planned: Plan) -> str:
    """The memory of each GPU, and from how many on the run fits."""
    room, rows = planned.device.memory_bytes, gpu_memory(planned)
    gib = 2**30
    lines = [f"{'memory on each GPU, GiB':<26}{'all weights':>15}{'fsdp2':>15}"]
    for row in rows:
        sharded = f"{row.sharded / gib:>15.3f}" if row.gpus > 1 else f"{'':>15}"
        lines.append(f"  {f'of {row.gpus}':<24}{row.whole / gib:>15.3f}{sharded}")
    if room is not None:
        plain = next((row.gpus for row in rows if row.whole <= room), None)
        sharded_at = next((row.gpus for row in rows if row.gpus > 1 and row.sharded <= room), None)
        lines.append(f"  {_verdict(plain, sharded_at)}")
    trains, frozen = (planned.counted.weights[name] for name in ("trainable weights", "frozen weights"))
    moved = planned.settings.accumulation * (2 * (trains + frozen) + trains) / gib
    lines.append(f"  fsdp2 moves {moved:.1f} GiB to each GPU at a step, without it {2 * trains / gib:.1f}")
    return "\n".join(lines)


def _verdict(plain: int | None, sharded: int | None) -> str:
    """From how many GPUs on a run fits; None: with none of the numbers above."""
    if plain == 1:
        return "fits one GPU: trainer.sharding is not needed"
    if plain is not None and (sharded is None or sharded >= plain):
        return f"fits from {plain} GPUs on: trainer.sharding is not needed"
    if sharded is None:
        return "DOES NOT FIT: give more trainer.accumulation, frozen weights or a smaller model"
    if plain is None:
        return f"needs trainer.sharding=fsdp2, and then fits from {sharded} GPUs on"
    return f"fits from {plain} GPUs on, with trainer.sharding=fsdp2 from {sharded} on"
