"""Grids of samples, shown side by side."""

from __future__ import annotations

import base64
import io
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from made_up import HOSTILE
from PIL import Image

from urepa.reports.comparison.arms import ComparedArms
from urepa.reports.comparison.page import page
from urepa.reports.comparison.results import Results
from urepa.reports.comparison.sample_grids import (
    LARGEST,
    SHOWN_AT_MOST,
    Grids,
    find_in_folder,
    grids_of,
    read_file,
    small_png,
)

Add, Summarise = Callable[..., None], Callable[..., Results]


def put(tmp_path: Path, name: str, step: int, level: int, side: int = 20, bucket: str = "") -> Path:
    """Writes a grid of one grey level into a run's folder."""
    folder = tmp_path / "outputs" / name / (f"buckets/{bucket}/samples" if bucket else "samples")
    folder.mkdir(exist_ok=True, parents=True)
    file = folder / f"step_{step:08d}.png"
    Image.fromarray(np.full((side, side, 3), level, np.uint8)).save(file)
    return file


def of_folders(study: ComparedArms) -> Grids | None:
    return grids_of(study, find_in_folder, read_file)


def level(png: bytes) -> int:
    return int(np.asarray(Image.open(io.BytesIO(png)))[0, 0, 0])


def test_grids_are_of_one_seed_and_the_last_step_that_most_arms_have(
    add: Add, results: Summarise, tmp_path: Path
) -> None:
    """Only the baseline has seed 0, with a later step; all arms share seed 1, two of them step 600, all of them step
    300."""
    add(seeds=(0, 1))
    add("arm", {"head.depth": 1}, seeds=(1, 2))
    add("late", {"head.depth": 3}, seeds=(1,))
    add("without", {"head.depth": 4}, seeds=(1,))
    put(tmp_path, "cifar10+baseline/seed0", 600, 1)
    for i, name in enumerate(("baseline", "arm", "late")):
        put(tmp_path, f"cifar10+{name}/seed1", 300, 10 + i)
    put(tmp_path, "cifar10+baseline/seed1", 600, 20)
    (tmp_path / "outputs" / "cifar10+arm" / "seed1" / "samples" / "notes.png").write_bytes(b"")
    found = of_folders(results().study)
    assert found is not None
    assert (found.seed, found.step) == (1, 300)
    assert [(grid.label, level(grid.png)) for grid in found.shown] == [("baseline", 10), ("arm", 11), ("late", 12)]
    assert found.note == "No grid of this step: without."


def test_grids_of_runs_with_buckets_are_of_the_bucket_that_most_arms_have(
    add: Add, results: Summarise, tmp_path: Path
) -> None:
    """At the last step; 48x80 is first by name, but one arm lacks it."""
    for i, name in enumerate(("baseline", "arm", "square", "other")):
        add(name, {"head.depth": i + 1}, seeds=(0,))
        put(tmp_path, f"cifar10+{name}/seed0", 300, 90, bucket="16x16")
        if name != "square":
            put(tmp_path, f"cifar10+{name}/seed0", 600, 10 + i, bucket="64x64")
    for name, grey in (("baseline", 20), ("arm", 21)):
        put(tmp_path, f"cifar10+{name}/seed0", 600, grey, bucket="48x80")
    put(tmp_path, "cifar10+square/seed0", 600, 30)
    study = results().study
    found = of_folders(study)
    assert found is not None
    assert (found.step, found.bucket) == (600, "64x64")
    assert [(grid.label, level(grid.png)) for grid in found.shown] == [("baseline", 10), ("arm", 11), ("other", 13)]
    assert found.note == "No grid of this step: square."
    put(tmp_path, "cifar10+other/seed0", 600, 23, bucket="48x80")
    found = of_folders(study)
    assert found is not None
    assert (found.bucket, level(found.shown[0].png)) == ("48x80", 20), "of two that as many have the first by name"
    assert "Step 600, seed 0, bucket 48x80 of every arm" in page(results(), [], [], found)


def test_without_grids_the_section_is_absent(add: Add, results: Summarise) -> None:
    add()
    assert of_folders(results().study) is None
    assert "Samples</h2>" not in page(results(), [], [])


def test_files_that_are_no_images_are_reported_and_not_shown(add: Add, results: Summarise, tmp_path: Path) -> None:
    add(seeds=(0,))
    add("arm", {"head.depth": 1}, seeds=(0,))
    put(tmp_path, "cifar10+baseline/seed0", 600, 7)
    put(tmp_path, "cifar10+arm/seed0", 600, 8).write_bytes(b"<svg onload=alert(1)>")
    found = of_folders(results().study)
    assert found is not None
    assert [grid.label for grid in found.shown] == ["baseline"]
    assert found.note == "Unreadable image files: arm."


def test_an_image_is_encoded_again_small_and_without_metadata(tmp_path: Path) -> None:
    png = io.BytesIO()
    Image.fromarray(np.zeros((2000, 1000, 3), np.uint8)).save(png, format="PNG")
    secret = b"tEXtcomment\0<script>"
    chunk = struct.pack(">I", len(secret) - 4) + secret + struct.pack(">I", zlib.crc32(secret))
    content = png.getvalue()[:33] + chunk + png.getvalue()[33:]
    small = small_png(content + b"behind")
    assert small is not None
    assert Image.open(io.BytesIO(small)).size == (LARGEST // 2, LARGEST)
    assert b"script" not in small
    assert b"behind" not in small


def test_decompression_bombs_and_truncated_files_are_not_opened() -> None:
    """A PNG whose header claims 100,000 x 100,000 pixels, a file that ends early, and another format."""
    png = io.BytesIO()
    Image.fromarray(np.zeros((50, 50, 3), np.uint8)).save(png, format="PNG")
    whole = png.getvalue()
    header = b"IHDR" + struct.pack(">II", 100_000, 100_000) + whole[24:29]
    assert small_png(whole[:12] + header + struct.pack(">I", zlib.crc32(header)) + whole[33:]) is None
    assert small_png(whole[:60]) is None
    gif = io.BytesIO()
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(gif, format="GIF")
    assert small_png(gif.getvalue()) is None


def test_grids_are_on_the_page_with_their_labels(add: Add, results: Summarise, tmp_path: Path) -> None:
    add(seeds=(0,))
    put(tmp_path, "cifar10+baseline/seed0", 600, 30)
    for i, name in enumerate(HOSTILE):
        add(name, {"head.depth": 3 + i}, seeds=(0,), name=f"arm{i}")
        put(tmp_path, f"arm{i}/seed0", 600, 40 + i)
    study = results()
    html = page(study, [], [], of_folders(study.study))
    section = html[html.index('<section id="samples">') :].split("</section>")[0]
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', section)
    assert sorted(level(base64.b64decode(uri)) for uri in found) == [30, *range(40, 40 + len(HOSTILE))]
    assert "Step 600, seed 0 of every arm" in section
    assert "<script" not in section


def test_only_the_first_of_many_arms_are_shown(add: Add, results: Summarise, tmp_path: Path) -> None:
    for i in range(SHOWN_AT_MOST + 3):
        add(f"arm{i:02d}", {"head.depth": 1 + i}, seeds=(0,), points=2)
        put(tmp_path, f"cifar10+arm{i:02d}/seed0", 600, i)
    found = of_folders(results().study)
    assert found is not None
    assert len(found.shown) == SHOWN_AT_MOST
    assert found.note == f"Shown are the grids of the first {SHOWN_AT_MOST} of {SHOWN_AT_MOST + 3} arms."
