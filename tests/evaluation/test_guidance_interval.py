"""Evaluations use the same guidance interval as the generate command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from toy_runs import write_run

from urepa.core.errors import UserError
from urepa.evaluation.context import Context
from urepa.evaluation.images.generated_images import GeneratedImages
from urepa.evaluation.images.generated_images_math import batches_of
from urepa.inference.open_run import load
from urepa.method.ddpm_sampling import sample_images

Compose = Callable[..., dict[str, Any]]
TEN: dict[str, Any] = {"count": 10, "sampler": "euler", "steps": 4, "guidance": 1.8, "batch_size": 10}


@pytest.mark.slow
def test_guidance_in_an_interval_equals_the_generate_commands(
    tmp_path: Path, compose: Compose, small_sit: list[str]
) -> None:
    run = write_run(tmp_path / "outputs" / "sit" / "seed0", compose(*small_sit), 10)
    flow = load(run, "cpu")
    cache: Any = SimpleNamespace(condition=flow.condition, conditions=flow.track.conditions)
    parts: dict[str, Any] = {"model": flow.model, "objective": flow.objective, "track": flow.track, "cache": cache}
    parts |= {"loss": None, "folder": run, "device": torch.device("cpu"), "seed": 0, "step": 10}
    context = Context(**parts, untrained=lambda: flow.model)

    def made(interval: list[float]) -> torch.Tensor:
        return torch.cat([rgb for _, rgb in GeneratedImages(**TEN, interval=interval).rgb(context)])

    inside, always = made([0.0, 0.7]), made([0.0, 1.0])
    assert len(list((run / "generated").iterdir())) == 2
    assert not torch.equal(inside, always)
    (batch,) = batches_of(GeneratedImages(**TEN), 10)
    asked: dict[str, Any] = {"sampler": "euler", "steps": 4, "guidance": 1.8, "seed": 0, "interval": (0.0, 0.7)}
    shape, condition = flow.track.latent_shape, flow.condition([class_id for class_id, _ in batch])
    x0 = sample_images(flow.model.backbone, flow.objective, batch, shape, condition, **asked)
    assert torch.equal(inside, (flow.track.to_rgb(x0) * 255).round() / 255)
    with pytest.raises(UserError, match=r"images\.interval=\[0\.7, 0\.2\]: give two times"):
        made([0.7, 0.2])


def test_an_interval_is_for_flows(context: Context) -> None:
    with pytest.raises(UserError, match=r"images\.interval has no effect on this run, which is not a flow"):
        list(GeneratedImages(**TEN | {"sampler": "ddim", "interval": [0.0, 0.7]}).rgb(context))
    assert not (context.folder / "generated").exists()
