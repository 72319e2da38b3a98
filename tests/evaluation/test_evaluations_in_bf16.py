"""Evaluations run inside the run's autocast. In bf16 only the backbone's rounding differs: readers, encoders and
decoders stay in fp32, and none of them fails."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contexts import Built, context_of
from PIL import Image
from toy_runs import small_sd, write_run

from urepa.core.png import grid_png
from urepa.evaluation import attention
from urepa.evaluation.context import Context
from urepa.evaluation.encoders.inception_net import InceptionNetwork
from urepa.evaluation.encoders.pixels import Pixels
from urepa.evaluation.images.generated_images import GeneratedImages
from urepa.evaluation.images.generated_images_math import decode_rgb
from urepa.evaluation.measures.dense import Dense
from urepa.evaluation.measures.generation import Generation
from urepa.evaluation.measures.inception_score import InceptionScore
from urepa.evaluation.measures.knn import Knn
from urepa.evaluation.measures.linear_probe import LinearProbe
from urepa.evaluation.measures.sample_grid import SampleGrid
from urepa.evaluation.measures.sample_grid_math import samples_of
from urepa.evaluation.measures.spatial import Spatial
from urepa.evaluation.measures.tap_probe import TapProbe
from urepa.evaluation.measures.teacher_alignment import TeacherAlignment
from urepa.inference.open_run import load
from urepa.training.assembly import build_part

Compose = Callable[..., dict[str, Any]]
READ: dict[str, Any] = {"tap": "mid", "timestep": 500, "timesteps": [], "train_images": 20, "test_images": 10}
IMAGES = GeneratedImages(count=10, sampler="ddim", steps=2, guidance=1.0, batch_size=5)
AT: dict[str, Any] = {"tap": "mid", "timestep": 500}
FEW: dict[str, Any] = {"train_images": 20, "test_images": 10}
GRID: dict[str, Any] = {"per_class": 1, "shown_per_class": 1, "sampler_steps": 2, "guidance": 1.0}
DISTANCES: dict[str, Any] = {"subset": 10, "kid_subsets": 2, "kid_subset_size": 5, "neighbours": 3}


class Linear(InceptionNetwork):
    """Ten classes by one matrix product, which autocast would round."""

    def weights_sha256(self) -> str:
        return "none"

    def probabilities(self, images_B3HW: torch.Tensor) -> torch.Tensor:
        pixels = images_B3HW.flatten(1)
        return (pixels @ torch.linspace(-1, 1, 10 * pixels.shape[1]).view(-1, 10)).softmax(1)


@pytest.fixture
def context(tmp_path: Path, compose: Compose, small_run: list[str]) -> Iterator[Context]:
    run = write_run(tmp_path / "outputs" / "quickstart" / "seed0", compose(*small_run), 10)
    opened = load(run, "cpu")
    cache = opened.track.open(build_part(opened.config["teacher"]))
    yield context_of(opened, cache, run, 10)
    cache.close()


@pytest.fixture
def halves(tmp_path: Path) -> Path:
    """Pictures whose left half is light, and their masks."""
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (tmp_path / "halves" / part).mkdir(parents=True)
    for i in range(20):
        mask = np.zeros((32, 32), np.uint8)
        mask[:, : 12 + i % 8] = 1
        grey = np.clip(mask * 120.0 + rng.integers(0, 80, mask.shape), 0, 255).astype(np.uint8)
        Image.fromarray(grey).save(tmp_path / "halves" / "images" / f"{i}.png")
        Image.fromarray(mask).save(tmp_path / "halves" / "masks" / f"{i}.png")
    return tmp_path / "halves"


@pytest.mark.slow
def test_every_cheap_evaluation_of_a_bf16_run(
    context: Context, halves: Path, compose: Compose, small_run: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "STEPS", 5)
    teacher = build_part(compose(*small_run)["teacher"])
    asked: list[Callable[[Context], dict[str, float]]] = [
        Knn(**READ, k=3),
        LinearProbe(**READ),
        TapProbe(**AT, **FEW, knn=3),
        SampleGrid(**GRID, max_classes=10, knn=3),
        TeacherAlignment(**AT, timesteps=[], neighbours=3, images=10),
        Spatial(**AT, images=10, far=0.2, decay=0.27),
        Generation(images=IMAGES, encoders={"pixels": Pixels(grid=2)}, reference_images=None, **DISTANCES),
        InceptionScore(images=IMAGES, encoder=Built(Linear("unread")), splits=2),
        Dense(**AT, folder=str(halves), train_images=20, test_images=20, teacher=Built(teacher)),
    ]
    in_bf16: dict[str, float] = {}
    for one in asked:
        with torch.autocast("cpu", torch.bfloat16):
            in_bf16 |= one(context)
    in_fp32: dict[str, float] = {}
    for one in asked:  # generated images lie in the run's folder: the same in both
        in_fp32 |= one(context)
    assert in_bf16.keys() == in_fp32.keys()
    assert all(math.isfinite(value) for value in in_bf16.values())
    own = ("teacher", "pixel", "floor", "fd/", "kid", "precision", "recall", "inception_score")
    same = [key for key in in_fp32 if any(part in key for part in own)]
    assert len(same) > 20
    assert {key: in_bf16[key] for key in same} == {key: in_fp32[key] for key in same}
    assert in_bf16["final/lds/tap"] != in_fp32["final/lds/tap"], "the backbone is in bf16"


@pytest.mark.slow
def test_a_latent_tracks_samples_are_decoded_in_fp32(tmp_path: Path, compose: Compose) -> None:
    run = write_run(tmp_path / "outputs" / "track_a" / "seed42", compose(*small_sd(tmp_path)), 4)
    manifest = tmp_path / "data" / "vae_latents_lmdb" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"image_size": 64}))
    opened = load(run, "cpu")
    cache = opened.track.open(None)
    context = context_of(opened, cache, run, 4)
    with torch.autocast("cpu", torch.bfloat16):
        SampleGrid(**GRID, max_classes=2, knn=None)(context)
        x0 = samples_of(context, [0, 1], 2, 1.0)
    assert (run / "samples" / "step_00000004.png").read_bytes() == grid_png(decode_rgb(context, x0), 1)
    cache.close()
