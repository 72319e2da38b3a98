"""Builds that are killed, trained on, and measured."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from photos import TRAIN, VAL, overrides, write_photos
from records import records

MEASURE = """
import json, pathlib, sys
from hydra import compose, initialize_config_dir
from urepa.assembly import make
from urepa.data.build import Build
from urepa.data.store import Part
from urepa.doors import CONF, prepare
from urepa.runs import plain
prepare()
with initialize_config_dir(CONF, version_base="1.3"):
    parts = plain(compose("preprocess", sys.argv[1:]))
build = Build(make(parts["data"]), make(parts["teacher"]), Part(), parts["batch_size"])
peaks = []
for stage in ("manifest", "images", "latents", "tokens", "prompts", "verify"):
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    build.run(stage)
    peaks.append(int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]))
print(json.dumps(peaks))
"""


@pytest.mark.slow
def test_a_build_killed_at_random_moments_equals_an_undisturbed_one(
    built_with_flips: Path, material: Path, tmp_path: Path
) -> None:
    """UREPA_BUILD_KILLS sets how many kills (3 by default), spread over the time that a build takes."""
    root, said = tmp_path / "cache", tmp_path / "stderr.txt"
    command = [sys.executable, "-m", "urepa.preprocess", *overrides(material, root), "batch_size=8", "data.flip=true"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    seed = random.SystemRandom().randrange(2**32)
    print(f"kill seed {seed}")
    moments, kills = random.Random(seed), int(os.environ.get("UREPA_BUILD_KILLS", "3"))
    for _ in range(kills):
        with said.open("w") as stderr:
            process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=stderr)
        seconds = moments.uniform(2.0, 9.0)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
        print(f"after {seconds:.2f} s, in: {said.read_text().splitlines()[-1:]}")
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    ours, theirs = records(root), records(built_with_flips)
    assert ours.keys() == theirs.keys()
    assert [k for k in ours if ours[k] != theirs[k]] == []


@pytest.mark.slow
def test_training_runs_on_the_built_caches(built: Path, material: Path, tmp_path: Path) -> None:
    """200 steps of track A on what the stages made of photographs."""
    command = [sys.executable, "-m", "urepa.train", "+experiment=track_a", f"data.root={built}"]
    command += [o for o in overrides(material, built)[2:] if not o.startswith("data.images")]
    command += [
        f"backbone.weights={material / 'sd'}",
        "tracking=none",
        "trainer.precision=fp32",
        "trainer.max_steps=200",
    ]
    command += ["trainer.batch_size=8", "trainer.validation_group=8", "loss.warmup_steps=20"]
    command += ["optimizer.lr.head=1e-3", "trainer.ema_decay=0.9"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (summary,) = tmp_path.glob("outputs/*/seed42/summary.json")
    written = json.loads(summary.read_text())
    assert written["step"] == 200
    assert written["data"]["samples"] == {"train": TRAIN, "val": VAL}
    assert written["metrics"]["val/total"] < 3


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_samples(material: Path, tmp_path: Path) -> None:
    """Peak memory of each stage over 200 and over 2,000 images: 88 MB of pixels more, were they kept."""
    peaks: dict[int, list[int]] = {}
    for count in (200, 2000):
        photos = write_photos(tmp_path / str(count), count, 2)
        command = [sys.executable, "-c", MEASURE, *overrides(material, tmp_path / f"cache{count}"), "batch_size=8"]
        command += [f"data.images={photos}", f"data.train_images={count}", "data.val_images=2", "data.flip=true"]
        done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        peaks[count] = json.loads(done.stdout.splitlines()[-1])
    print(f"peak memory of manifest, images, latents, tokens, prompts, verify: {peaks} KiB")
    growth = [many - few for few, many in zip(peaks[200], peaks[2000], strict=True)]
    assert max(growth) < 25 * 1024, peaks
