"""What several tests need: composed configs, a folder of tiny images, a small digits track, trainers."""

from __future__ import annotations

import os

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # these tests compare bits: CPU, wherever they run

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tensors here are tiny: more threads only wait for each other."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def compose() -> Callable[..., dict[str, Any]]:
    """compose(*overrides, root="train") as plain dicts, as every door builds from them."""
    import hydra

    from urepa.doors import CONF, prepare
    from urepa.runs import plain

    prepare()

    def composed(*overrides: str, root: str = "train") -> dict[str, Any]:
        with hydra.initialize_config_dir(CONF, version_base="1.3"):
            return plain(hydra.compose(root, list(overrides)))

    return composed


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """images/{train,test}/{cat,dog,emu}/NN.png: 12 and 4 a class, 8x8 RGB, no two alike."""
    from PIL import Image

    root = tmp_path_factory.mktemp("source") / "images"
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for name in ("cat", "dog", "emu"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{i:02d}.png")
    return root


@pytest.fixture
def make_track(images: Path, tmp_path: Path) -> Callable[..., Any]:
    """A PixelTrack over `images`: 12x4x4 latents, 6 validation and 6 test images, 3 classes."""
    from urepa.data.pixels import PixelTrack

    defaults = {
        "name": "tiny",
        "root": str(tmp_path / "track"),
        "source": "folder",
        "images": str(images),
        "limit": None,
        "validation_images": 6,
        "test_images": 6,
        "channels": 3,
        "image_size": 8,
        "unshuffle": 2,
        "num_classes": 3,
        "cfg_dropout": 0.1,
        "build_on_first_use": True,
    }
    return lambda **changes: PixelTrack(**(defaults | changes))


class PatchTeacher:
    """A teacher whose tokens can be checked by hand: an image's 2x2 grid of mean colours, at unit length."""

    width, grid = 3, (2, 2)

    def manifest(self) -> dict[str, Any]:
        return {"model": "mean-colour", "image_size": 8, "grid": list(self.grid), "width": self.width}

    def tokens(self, images_B3HW: Any) -> Any:
        import torch.nn.functional as F

        from urepa.contracts import Tokens

        map_B322 = F.adaptive_avg_pool2d(images_B3HW, self.grid)
        return Tokens(F.normalize(map_B322.flatten(2).transpose(1, 2), dim=-1), self.grid)


@pytest.fixture(scope="session")
def teacher() -> PatchTeacher:
    return PatchTeacher()


@pytest.fixture
def cache(make_track: Callable[..., Any], teacher: PatchTeacher) -> Iterator[Any]:
    """The small track's open caches, with tokens: 30 training samples."""
    opened = make_track().open(teacher)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory, compose: Callable[..., dict[str, Any]]) -> list[str]:
    """Overrides that make the quickstart tiny; its caches are there, and runs of one session share them."""
    from urepa.assembly import make

    overrides = [
        f"data.root={tmp_path_factory.mktemp('digits')}",
        "data.limit=40",
        "data.validation_images=20",
        "data.test_images=20",
        "data.image_size=16",
        "teacher.image_size=64",
        "teacher.grid=[2,2]",
        "backbone.block_out_channels=[32,64]",
        "backbone.attention=[false,true]",
        "backbone.cross_attention_dim=32",
        "trainer.batch_size=8",
        "trainer.validation_group=10",
        "trainer.max_steps=10",
        "loss.warmup_steps=4",
        "tracking=none",
    ]
    config = compose(*overrides)
    make(config["data"]).open(make(config["teacher"])).close()
    return overrides


@pytest.fixture
def build_trainer(
    compose: Callable[..., dict[str, Any]], small_run: list[str], tmp_path: Path
) -> Iterator[Callable[..., Any]]:
    """build_trainer(*overrides): a Trainer at step 0. Building the next one closes the caches of the last:
    a process opens an LMDB store once."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    from urepa import assembly
    from urepa.tracking import NoShipper

    built: list[Any] = []

    def close() -> None:
        for trainer in built:
            trainer.reader.cache.close()

    def build(*overrides: str) -> Any:
        close()
        without_loss = "loss=none" in overrides
        own = [o for o in small_run if not (without_loss and o.startswith("loss."))]
        folder = tmp_path / f"run{len(built)}"
        folder.mkdir()
        shipper = NoShipper(folder=folder, name="", params={}, run_tags={})
        trainer, _ = assembly.build(compose(*own, *overrides), folder, Accelerator(cpu=True), shipper)
        built.append(trainer)
        return trainer

    yield build
    close()
    AcceleratorState._reset_state(reset_partial_state=True)
