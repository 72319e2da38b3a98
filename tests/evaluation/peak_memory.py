"""Prints a process's peak memory in MiB after an evaluation of so many random samples, for each number in turn.

python peak_memory.py alignment|knn|linear_probe FOLDER N [N ...]
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Any

import torch

from urepa.costs.benchmark.random_data import SyntheticTrack
from urepa.evaluation import attention
from urepa.evaluation.context import Context
from urepa.evaluation.measures.knn import Knn
from urepa.evaluation.measures.linear_probe import LinearProbe
from urepa.evaluation.measures.teacher_alignment import TeacherAlignment
from urepa.method.heads.conv_net import ConvHead
from urepa.method.losses.urepa_loss import URepaLoss
from urepa.method.objectives.ddpm_math import VelocityMath
from urepa.method.schedules.constant import Constant
from urepa.method.training_step import AlignedModel
from urepa.models.backbones.unet_net import tiny_unet

WIDTH, SIZE = 32, 8


class Teacher:
    """What a track needs of a teacher: as many tokens as the latent has pixels."""

    width, grid = WIDTH, (SIZE, SIZE)


def evaluation(name: str, n: int) -> Any:
    at: dict[str, Any] = {"tap": "mid", "timestep": 500, "timesteps": []}
    if name == "alignment":
        return TeacherAlignment(**at, neighbours=10, images=n)
    some: dict[str, Any] = {"train_images": n, "test_images": 500}
    return Knn(**at, **some, k=20) if name == "knn" else LinearProbe(**at, **some)


def main(name: str, folder: Path, numbers: list[int]) -> None:
    torch.set_num_threads(1)
    attention.STEPS = 20  # each takes the same memory
    track = SyntheticTrack(str(folder), max(numbers), [4, SIZE, SIZE], 10, 0.1)
    track.write(Teacher)
    backbone = tiny_unet([32], [False], 1, 16, 8, latent_shape=(4, SIZE, SIZE), num_classes=10)
    head = ConvHead(1, "after", in_width=32, out_width=WIDTH)
    model = AlignedModel(backbone, {"mid": head}).eval().requires_grad_(False)
    loss = URepaLoss(
        lambda_max=0.5, warmup_steps=0, manifold_weight=0.0, level="sample", taps={"mid": 1.0}, spike_threshold=10.0
    )
    context = Context(
        model=model,
        objective=VelocityMath(0.00085, 0.012, "linear", 1000),
        loss=loss.build(schedule=Constant(), max_steps=1),
        track=track,
        cache=track.open(Teacher),
        folder=folder,
        device=torch.device("cpu"),
        seed=0,
        step=0,
        untrained=lambda: model,
    )
    for n in numbers:
        evaluation(name, n)(context)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), [int(n) for n in sys.argv[3:]])
