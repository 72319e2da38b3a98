"""Builds that are killed, trained on, and measured."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import forks
import pytest
from photos import TRAIN, VAL, overrides, write_photos
from records import records

pytestmark = pytest.mark.long

MEASURE = """
import json, pathlib, sys
from hydra import compose, initialize_config_dir
from urepa.training.assembly import build_part
from urepa.data.stages.build import Build
from urepa.data.stores.lmdb_store import Part
from urepa.cli import CONF, prepare
from urepa.runs.run_folder import to_plain
prepare()
with initialize_config_dir(CONF, version_base="1.3"):
    parts = to_plain(compose("preprocess", sys.argv[1:]))
build = Build(build_part(parts["data"]), build_part(parts["teacher"]), Part(), parts["batch_size"])
peaks = []
for stage in ("manifest", "images", "latents", "tokens", "prompts", "verify"):
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    build.run(stage)
    peaks.append(int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]))
print(json.dumps(peaks))
"""

# the preprocess door; some milliseconds after the n-th time that something was about to become durable (a file
# renamed to its place, a batch written to a store) the process is killed from another thread
KILLED = """
import os, runpy, signal, sys, threading
from urepa.data.stores.lmdb_store import StoreWriter
left, delay = int(sys.argv[1]), float(sys.argv[2])
def counting(original):
    def counted(*args, **kwargs):
        global left
        left -= 1
        if left == 0:
            threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return original(*args, **kwargs)
    return counted
os.replace, StoreWriter.put = counting(os.replace), counting(StoreWriter.put)
sys.argv[1:] = sys.argv[3:]
runpy.run_module("urepa.preprocess", run_name="__main__")
"""
EVENTS = 60  # that an undisturbed build of this size counts, about; going on costs some again


@pytest.mark.slow
def test_a_build_killed_at_random_moments_equals_an_undisturbed_one(
    built_with_flips: Path, material: Path, tmp_path: Path
) -> None:
    """UREPA_BUILD_KILLS sets how many kills (3 by default), spread over all stages."""
    root = tmp_path / "cache"
    arguments = [*overrides(material, root), "batch_size=8", "data.flip=true"]
    seed = random.SystemRandom().randrange(2**32)
    print(f"kill seed {seed}")
    moments, kills = random.Random(seed), int(os.environ.get("UREPA_BUILD_KILLS", "3"))
    killed = 0
    for _ in range(kills):
        latest = min(4 * EVENTS // kills, EVENTS // 3)  # so that most of the kills find the build still at work
        when = [str(moments.randint(1, latest)), f"{moments.expovariate(1 / 0.01):.4f}"]
        process = forks.run_code(KILLED, [*when, *arguments], tmp_path)
        killed += process.returncode == -signal.SIGKILL
        print(f"{process.returncode}: {when}, in {process.stderr.splitlines()[-1:]}")
    assert killed > kills / 2
    done = forks.run(["-m", "urepa.preprocess", *arguments], tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    ours, theirs = records(root), records(built_with_flips)
    assert ours.keys() == theirs.keys()
    assert [k for k in ours if ours[k] != theirs[k]] == []


@pytest.mark.slow
def test_training_runs_on_the_built_caches(built: Path, material: Path, tmp_path: Path) -> None:
    """200 steps of track A on what the stages made of photographs."""
    command = ["-m", "urepa.train", "+experiment=track_a", f"data.root={built}"]
    command += [o for o in overrides(material, built)[2:] if not o.startswith("data.images")]
    command += [
        f"backbone.weights={material / 'sd'}",
        "tracking=none",
        "trainer.precision=fp32",
        "trainer.max_steps=200",
    ]
    command += ["trainer.batch_size=8", "trainer.validation_group=8", "loss.warmup_steps=20"]
    command += ["optimizer.lr.head=1e-3", "trainer.ema_decay=0.9"]
    done = forks.run(command, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    (summary,) = tmp_path.glob("outputs/*/seed42/summary.json")
    written = json.loads(summary.read_text())
    assert written["step"] == 200
    assert written["data"]["samples"] == {"train": TRAIN, "val": VAL}
    assert written["metrics"]["val/total"] < 3


@pytest.mark.slow
def test_a_folder_of_photographs_from_files_to_a_trained_run(tmp_path: Path) -> None:
    """The commands of a user with photographs and no hub: preprocess, verify, train; with flips."""
    photos = write_photos(tmp_path / "photos", 420, 2) / "train"
    track = ["data=folder", f"data.images={photos}", "data.num_classes=2", "data.flip=true", f"data.root={tmp_path}"]
    track += ["data.validation_images=40", "data.test_images=20"]
    small = ["backbone.block_out_channels=[32,32,32]", "trainer.batch_size=8", "trainer.validation_group=20"]
    small += ["trainer.max_steps=100", "loss.warmup_steps=20", "tracking=none", "evaluation=none"]
    small += ["trainer.ema_decay=0.9"]
    commands = [["preprocess", *track], ["preprocess", *track, "stage=verify"], ["train", *track, *small]]
    said = []
    for door, *arguments in commands:
        done = forks.run(["-m", f"urepa.{door}", *arguments], tmp_path)
        assert done.returncode == 0, done.stderr[-2000:]
        said.append(done.stdout)
    assert "360 train, 40 val, 20 test" in said[0]
    assert "420 samples are whole" in said[1]
    assert "360 mirrored samples are whole" in said[1]
    (summary,) = tmp_path.glob("outputs/*/seed0/summary.json")
    written = json.loads(summary.read_text())
    assert written["step"] == 100
    assert written["data"]["flip"] is True
    metrics = written["metrics"]
    assert metrics["val/diffusion"] < 0.9 * metrics["floor/zero_predictor"]
    assert metrics["val/token"] < metrics["floor/constant_token"]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_samples(material: Path, tmp_path: Path) -> None:
    """Peak memory of each stage with 200 and with 1,200 images: keeping their pixels would take 49 MB more.
    UREPA_MEMORY_IMAGES=1000,10000 measures the table of docs/data.md."""
    few, many = (int(n) for n in os.environ.get("UREPA_MEMORY_IMAGES", "200,1200").split(","))
    peaks: dict[int, list[int]] = {}
    for count in (few, many):
        photos = write_photos(tmp_path / str(count), count, 2)
        command = [sys.executable, "-c", MEASURE, *overrides(material, tmp_path / f"cache{count}"), "batch_size=8"]
        command += [f"data.images={photos}", f"data.train_images={count}", "data.val_images=2", "data.flip=true"]
        done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        peaks[count] = json.loads(done.stdout.splitlines()[-1])
    print(f"peak memory of manifest, images, latents, tokens, prompts, verify: {peaks} KiB")
    growth = [more - less for less, more in zip(peaks[few], peaks[many], strict=True)]
    assert max(growth) < 25 * 1024, peaks
