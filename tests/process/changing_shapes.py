"""Three steps whose latents and teacher grids change, A, B, A, in as many processes as torchrun's variables say.

    python changing_shapes.py BACKBONE FILE [--compile]

Rank 0 writes each step's gradients, averaged over ranks, to FILE. Each process has its part of a global batch.
"""

from __future__ import annotations

import gc
import os
import sys
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn

from urepa.core.collectives import gather_with_gradient
from urepa.core.conditions import Condition
from urepa.core.types import Batch, Tokens
from urepa.method.heads.conv_net import ConvHead
from urepa.method.heads.mlp_net import MLPHead
from urepa.method.losses.urepa_loss import URepaLoss
from urepa.method.objectives.ddpm_math import VelocityMath
from urepa.method.objectives.flow_math import FlowMath
from urepa.method.schedules.constant import Constant
from urepa.method.training_step import AlignedModel, step_terms
from urepa.models.backbones.sit import SiT
from urepa.models.backbones.unet_net import tiny_unet
from urepa.models.speed_switches import compile_blocks

A, B = ((3, 16, 16), (8, 8)), ((3, 12, 20), (6, 10))
GLOBAL, WIDTH = 4, 32
RANK, WORLD = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def model_of(kind: str) -> AlignedModel:
    torch.manual_seed(0)
    if kind == "sit":
        settings: dict[str, Any] = {"weights": "random", "patch": 2, "depth": 2, "width": 16, "heads": 2}
        declared = SiT(**settings, qk_norm=True, positions="sincos")  # type: ignore[arg-type]
        backbone: Any = declared.build(latent_shape=A[0], num_classes=3)
        heads: dict[str, nn.Module] = {"block_0": MLPHead(64, in_width=16, out_width=WIDTH)}
    else:
        sizes = ([32, 64], [False, True], 1)
        backbone = tiny_unet(*sizes, cross_attention_dim=32, head_dim=32, latent_shape=A[0], num_classes=3)
        heads = {"mid": ConvHead(2, "before", in_width=64, out_width=WIDTH)}
    for parameter in backbone.parameters():
        nn.init.normal_(parameter, std=0.1)  # gates that are 0 would hide the blocks
    return AlignedModel(backbone, heads)


def batch_of(step: int, latent: tuple[int, int, int], grid: tuple[int, int], whole_times: bool) -> Batch:
    """This rank's part of a batch."""
    random = torch.Generator().manual_seed(step)
    x0, noise = (torch.randn(GLOBAL, *latent, generator=random) for _ in range(2))
    t_B = torch.rand(GLOBAL, generator=random)
    teacher_BND = torch.randn(GLOBAL, grid[0] * grid[1], WIDTH, generator=random)
    own = slice(RANK * GLOBAL // WORLD, (RANK + 1) * GLOBAL // WORLD)
    condition = Condition.of_classes(torch.tensor([0, 1, 2, 2])[own])
    times_B = (1000 * t_B).long() if whole_times else t_B
    return Batch([], x0[own], noise[own], times_B[own], condition, {"": Tokens(teacher_BND[own], grid)})


def main(kind: str, file: str, is_compiled: bool) -> None:
    torch.set_num_threads(1)
    if WORLD > 1:
        dist.init_process_group("gloo")
    model = model_of(kind)
    if is_compiled:
        compile_blocks(model.backbone)
    prepared: nn.Module = model
    if WORLD > 1:
        prepared = nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
    if kind == "sit":
        objective: Any = FlowMath("linear", "uniform")
    else:
        objective = VelocityMath(0.00085, 0.012, "linear", 1000)
    settings: dict[str, Any] = {"lambda_max": 0.5, "warmup_steps": 0, "manifold_weight": 3.0, "spike_threshold": 10.0}
    declared = URepaLoss(**settings, level="both", taps=dict.fromkeys(model.taps, 1.0))
    loss = declared.build(schedule=Constant(), max_steps=3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gradients = {}
    for step, (latent, grid) in enumerate((A, B, A)):
        batch = batch_of(step, latent, grid, kind != "sit")
        terms, output = step_terms(prepared, objective, loss, batch, step, gather_with_gradient)
        assert {tokens.grid for tokens in output.tokens.values()} == {grid}
        optimizer.zero_grad()
        terms.total.backward()
        gradients |= {f"{step}/{name}": p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        optimizer.step()
    if RANK == 0:
        save_file(gradients, file)
    if WORLD > 1:  # to end with a live DDP wrapper hangs at times
        del prepared, terms, output, optimizer
        gc.collect()
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], "--compile" in sys.argv)
