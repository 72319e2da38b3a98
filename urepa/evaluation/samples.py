"""Class-conditional samples by DDIM: a grid to look at, and what a k-NN on real images calls them.

Shapes: B samples, CHW latent.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from urepa import draws, progress
from urepa.contracts import Condition
from urepa.evaluation.context import Context
from urepa.files import write_whole

CHUNK = 100


@torch.no_grad()
def sample(context: Context, class_ids: list[int], steps: int, guidance: float) -> Tensor:
    """DDIM (Song et al. 2021, η = 0) from addressed noise: [B,C,H,W] on the CPU.

    With guidance g the prediction is u + g·(c − u) (Ho & Salimans 2022); at 1 the null pass is left out.
    """
    from diffusers import DDIMScheduler

    objective = context.objective
    scheduler: Any = DDIMScheduler(
        num_train_timesteps=objective.timesteps,
        beta_start=objective.beta_start,
        beta_end=objective.beta_end,
        beta_schedule=objective.beta_schedule,
        prediction_type=objective.prediction_type,
        clip_sample=False,
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(steps)
    backbone: Any = context.model.backbone
    out = []
    for start in range(0, len(class_ids), CHUNK):
        part = class_ids[start : start + CHUNK]
        rngs = [draws.generator(context.seed, "sample", 0, start + i) for i in range(len(part))]
        x = torch.stack([draws.normal(context.track.latent_shape, rng) for rng in rngs]).to(context.device)
        condition = Condition(torch.tensor(part, device=context.device), context.cache.null_id)
        for t in progress.bar(scheduler.timesteps, desc="samples", unit="step", leave=False):
            t_B = t.expand(len(part)).to(context.device)
            prediction = backbone(x, t_B, condition).prediction_RCHW.float()
            if guidance != 1:
                null = backbone(x, t_B, condition.null()).prediction_RCHW.float()
                prediction = null + guidance * (prediction - null)
            x = scheduler.step(prediction, t, x).prev_sample
        out.append(x.cpu())
    return torch.cat(out)


def grid_png(images_B3HW: Tensor, columns: int, scale: int) -> bytes:
    """Images in [0,1] as one PNG, `columns` a row, each pixel `scale` wide, 2 pixels apart."""
    pad = torch.nn.functional.pad(images_B3HW, (1, 1, 1, 1), value=1.0)
    rows = [torch.cat(list(chunk), dim=2) for chunk in pad.split(columns)]
    picture = torch.cat(rows, dim=1).permute(1, 2, 0)
    array = (picture.numpy() * 255).round().astype(np.uint8).repeat(scale, 0).repeat(scale, 1)
    png = io.BytesIO()
    Image.fromarray(array).save(png, format="PNG")
    return png.getvalue()


@dataclass
class SampleGrid:
    """Fields are described in `conf/evaluation`. Rows of the grid are classes."""

    per_class: int
    shown_per_class: int
    max_classes: int
    sampler_steps: int
    guidance: float
    knn: int | None

    def __call__(self, context: Context) -> dict[str, float]:
        classes = min(self.max_classes, context.track.num_classes)
        ids = [c for c in range(classes) for _ in range(self.per_class)]
        x0 = sample(context, ids, self.sampler_steps, self.guidance)
        shown = [i for i in range(len(ids)) if i % self.per_class < self.shown_per_class]
        folder = context.folder / "samples"
        folder.mkdir(exist_ok=True)
        png = grid_png(context.track.to_rgb(x0[shown]), min(self.shown_per_class, self.per_class), scale=2)
        write_whole(folder / f"step_{context.step:08d}.png", png)
        if self.knn is None:
            return {}
        return {"final/samples_named_rightly": named_rightly(context, x0, ids, self.knn)}


def named_rightly(context: Context, x0: Tensor, ids: list[int], k: int) -> float:
    """The share of samples that a k-NN fitted to the real training images gives their class."""
    from sklearn.neighbors import KNeighborsClassifier

    train = context.cache.splits["train"]
    real = context.cache.x0(train).flatten(1).numpy()
    knn = KNeighborsClassifier(k).fit(real, [s.class_id for s in train])
    return float((knn.predict(x0.flatten(1).numpy()) == np.array(ids)).mean())
