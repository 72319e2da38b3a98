"""Fixtures that several tests need: composed configs, a folder of tiny images, a small digits track, trainers."""

from __future__ import annotations

import ctypes
import fcntl
import gc
import os
import pickle
import shutil
import sys

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # these tests compare bits: CPU, wherever they run
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tensors here are tiny: more threads only wait; for subprocesses too

from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pytest

WRITES_BYTECODE = not sys.dont_write_bytecode
sys.dont_write_bytecode = False  # while tests are collected: every process compiles them and urepa again otherwise
gc.disable()  # until then: what is imported stays
HERE = Path(__file__).parent
PROCESS, SD15 = 3 * 10**9, 10**10  # bytes of a process of tests with what it starts, and of a test of SD-1.5
MOST = 8  # more processes would wait for the longest files


@pytest.hookimpl(wrapper=True)  # around the marks of tests/process/conftest.py and around `-m`
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Iterator[None]:
    """Marks the cases that `fast(n)` leaves out as slow, and puts long files first, so that short ones keep all
    processes busy at the end. Files that mostly wait alternate with files that compute."""
    cases = defaultdict(list)
    for item in items:
        if item.get_closest_marker("fast") is not None:
            cases[item.path, item.originalname].append(item)  # type: ignore[attr-defined]
    for same in cases.values():
        count = same[0].get_closest_marker("fast").args[0]  # type: ignore[union-attr]
        kept = {len(same) * i // count for i in range(count)}
        for i, item in enumerate(same):
            if i not in kept:
                item.add_marker(pytest.mark.slow)
    yield
    long = {item.path: mark for item in items if (mark := item.get_closest_marker("long")) is not None}
    waiting, computing = ([path for path in long if bool(long[path].kwargs) == waits] for waits in (True, False))
    order = [path for both in zip_longest(waiting, computing) for path in both if path is not None]
    place = {path: i for i, path in enumerate(order)}
    process = HERE / "process"
    # files stay whole
    items.sort(key=lambda item: place.get(item.path, len(place) + (process not in item.path.parents)))


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """A process for each core in the fast part, which computes all the time; one more for all tests, of which many
    wait. On two cores two and three, on more cores as many as there is memory for."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 2
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if "not slow" in config.option.markexpr:
        return max(2, min(cores, MOST, memory // PROCESS))
    return max(3, min(cores + 1, MOST, (memory - SD15) // PROCESS))


def pytest_collection_finish() -> None:
    """Imported objects are never garbage, so later collections need not visit them."""
    sys.dont_write_bytecode = not WRITES_BYTECODE
    gc.freeze()
    gc.enable()
    gc.set_threshold(10_000, 20, 20)  # from (700, 10, 10): compositions make much garbage, and it is small


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Sets one thread, whatever the environment says."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """made_once(name, make): a folder that all processes of a test run share. The first that asks for it fills it with
    make(folder), and the others wait for it. Do not write in it."""
    own = tmp_path_factory.getbasetemp()
    root = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def made(name: str, make: Callable[[Path], None]) -> Path:
        folder, done = root / name, root / f"{name}.made"
        with open(root / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of one that failed
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return made


@pytest.fixture(scope="session")
def empty_db(made_once: Callable[..., Path]) -> Path:
    """MLflow's tables without a run: to make them takes seconds. Copy it."""
    from urepa.runs.mlflow_store import connect

    def make(folder: Path) -> None:
        connect(f"sqlite:///{folder / 'mlflow.db'}")

    return made_once("db", make) / "mlflow.db"


@pytest.fixture
def room_for_sd15(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """SD-1.5 takes 10 GB, so only one test at a time has it, however many processes there are."""
    with open(tmp_path_factory.getbasetemp().parent / "sd15.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
        gc.collect()
        if sys.platform == "linux":
            ctypes.CDLL("libc.so.6").malloc_trim(0)  # glibc would keep the memory for this process


@pytest.fixture(scope="session")
def compose() -> Callable[..., dict[str, Any]]:
    """compose(*overrides, root="train"): a config as plain dicts, as every command builds from. Equal calls are
    composed once."""
    import hydra

    from urepa.cli import CONF, prepare
    from urepa.runs.run_folder import to_plain

    prepare()

    known: dict[tuple[str, ...], bytes] = {}

    def composed(*overrides: str, root: str = "train") -> dict[str, Any]:
        # what resolvers read of files, a run's or a folder's of images, may have changed since
        lasts = root == "train" and not any("images=" in o or o.startswith("resume=") for o in overrides)
        if lasts and overrides in known:
            return pickle.loads(known[overrides])
        with hydra.initialize_config_dir(CONF, version_base="1.3"):
            config = to_plain(hydra.compose(root, list(overrides)))
        if lasts:
            known[overrides] = pickle.dumps(config)
        return config

    return composed


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """images/{train,test}/{cat,dog,emu}/NN.png: 12 and 4 per class, 8x8 RGB, all different."""
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
    """The caches of a PixelTrack over `images`: 12x4x4 latents, 6 validation and 6 test images, 3 classes."""
    from urepa.data.tracks.pixel_track import PixelTrack

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
        "scale": 1.0,
        "num_classes": 3,
        "cfg_dropout": 0.1,
        "build_on_first_use": True,
    }
    return lambda **changes: PixelTrack(**(defaults | changes)).build()


class PatchTeacher:
    """A teacher whose tokens can be computed by hand: the mean colours of an image's 2x2 grid, at unit length."""

    width, grid = 3, (2, 2)

    def manifest(self) -> dict[str, Any]:
        return {"model": "mean-colour", "image_size": 8, "grid": list(self.grid), "width": self.width}

    def tokens(self, images_B3HW: Any) -> Any:
        import torch.nn.functional as F

        from urepa.core.types import Tokens

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
    """Overrides that make the quickstart tiny. Its caches exist; the runs of one session share them."""
    from urepa.training.assembly import build_part

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
    build_part(config["data"]).open(build_part(config["teacher"])).close()
    return overrides


@pytest.fixture(scope="session")
def small_sit(tmp_path_factory: pytest.TempPathFactory, compose: Callable[..., dict[str, Any]]) -> list[str]:
    """As `small_run`, for repa_cifar10_pixels on digits as 1x16x16 pixels."""
    from urepa.training.assembly import build_part

    overrides = [
        "+experiment=repa_cifar10_pixels",
        "data=digits",
        "evaluation=none",
        f"data.root={tmp_path_factory.mktemp('digits')}",
        "data.limit=40",
        "data.validation_images=20",
        "data.test_images=20",
        "data.image_size=16",
        "data.unshuffle=1",
        "teacher.image_size=128",
        "teacher.grid=[4,4]",
        "backbone.depth=4",
        "backbone.width=32",
        "backbone.heads=2",
        "head.hidden=16",
        "trainer.batch_size=8",
        "trainer.validation_group=10",
        "trainer.max_steps=10",
        "tracking=none",
    ]
    config = compose(*overrides)
    build_part(config["data"]).open(build_part(config["teacher"])).close()
    return overrides


@pytest.fixture(scope="session")
def small_flextok(tmp_path_factory: pytest.TempPathFactory, compose: Callable[..., dict[str, Any]]) -> list[str]:
    """The same of flextok_smoke, on digits as 4x8x8 of 16x16 pixels: 16 patches and 8 registers."""
    from urepa.training.assembly import build_part

    overrides = [
        "+experiment=flextok_smoke",
        "evaluation=none",
        f"data.root={tmp_path_factory.mktemp('digits')}",
        "data.limit=40",
        "data.validation_images=20",
        "data.test_images=20",
        "data.image_size=16",
        "teacher.image_size=64",
        "teacher.grid=[2,2]",
        "backbone.registers=8",
        "backbone.encoder_depth=2",
        "backbone.encoder_width=32",
        "backbone.decoder_depth=3",
        "backbone.decoder_width=48",
        "backbone.head_dim=16",
        "head.hidden=16",
        "trainer.batch_size=8",
        "trainer.validation_group=10",
        "trainer.max_steps=10",
        "tracking=none",
    ]
    config = compose(*overrides)
    build_part(config["data"]).open(build_part(config["teacher"])).close()
    return overrides


@pytest.fixture(scope="session")
def ask(compose: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """ask(*overrides): a request for images of a run or a checkpoint, as the command makes it."""
    from published import asking

    return asking(compose)


@pytest.fixture(scope="session")
def sit_file(
    tmp_path_factory: pytest.TempPathFactory, compose: Callable[..., dict[str, Any]], small_sit: list[str]
) -> Path:
    """Weights for `small_sit` in the published layout, all different from 0, as after training."""
    import torch
    from safetensors.torch import save_file

    from urepa.training.assembly import build_backbone, build_part

    config = compose(*small_sit)
    track = build_part(config["data"])
    backbone = build_backbone(config, track)
    generator = torch.Generator().manual_seed(0)
    values = {k: v + 0.1 * torch.randn(v.shape, generator=generator) for k, v in backbone.state_dict().items()}
    file = tmp_path_factory.mktemp("published") / "sit.safetensors"
    save_file(values, file)
    return file


@pytest.fixture
def build_trainer(small_run: list[str], trainer_of: Callable[..., Any]) -> Callable[..., Any]:
    """build_trainer(*overrides): a Trainer of the tiny quickstart."""

    def build(*overrides: str) -> Any:
        without_loss = "loss=none" in overrides
        own = [o for o in small_run if not (without_loss and o.startswith("loss."))]
        return trainer_of(*own, *overrides)

    return build


@pytest.fixture
def trainer_of(compose: Callable[..., dict[str, Any]], tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """trainer_of(*overrides): a Trainer at step 0. Each call closes the caches of the previous Trainer, because a
    process may open an LMDB store only once."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    from urepa.runs.trackers.no_tracking import NoShipper
    from urepa.training import trainer_assembly

    built: list[Any] = []

    def close() -> None:
        for trainer in built:
            trainer.reader.cache.close()

    def build(*overrides: str) -> Any:
        close()
        folder = tmp_path / f"run{len(built)}"
        folder.mkdir()
        shipper = NoShipper()
        trainer, _ = trainer_assembly.build(compose(*overrides), folder, Accelerator(cpu=True), shipper)
        built.append(trainer)
        return trainer

    yield build
    close()
    AcceleratorState._reset_state(reset_partial_state=True)
