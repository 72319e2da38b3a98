"""Strips of pictures over the steps, an arm each, in the report."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from urepa.core.look_sheets import FOLDER, HEAD, NEAR_HEAD, sheet_name, sheet_png
from urepa.reports.comparison.look_strips import Strips, strips_of
from urepa.reports.comparison.page import page
from urepa.reports.comparison.results import Results
from urepa.reports.comparison.sample_grids import find_in_folder, read_file

Add, Summarise = Callable[..., None], Callable[..., Results]
SIDE = 96


def put(tmp_path: Path, name: str, step: int, level: int, bucket: str = "") -> None:
    """Writes a sheet of one grey level into a run's folder."""
    folder = tmp_path / "outputs" / name / (f"buckets/{bucket}/{FOLDER}" if bucket else FOLDER)
    folder.mkdir(exist_ok=True, parents=True)
    cell = Image.new("RGB", (SIDE, SIDE), (level, level, level))
    (folder / sheet_name(step)).write_bytes(sheet_png({HEAD: [cell] * 3, NEAR_HEAD: [cell] * 3}, "caption"))


def of_folders(study: Results) -> Strips | None:
    return strips_of(study.study, lambda run: find_in_folder(run, FOLDER), read_file)


def levels(png: bytes) -> list[int]:
    """The grey levels of the pictures in the first line, from left to right; white between them left out."""
    row = np.asarray(Image.open(BytesIO(png)))[40, :, 0]
    found = [int(level) for level in row if (row == level).sum() >= SIDE and level != 255]
    return list(dict.fromkeys(found))


@pytest.mark.slow
def test_each_arm_has_a_strip_in_the_report(add: Add, results: Summarise, tmp_path: Path) -> None:
    add(seeds=(0, 1))
    add("arm", {"head.depth": 1}, seeds=(0, 1))
    add("without", {"head.depth": 3}, seeds=(0, 1))
    for step in range(100, 1300, 100):
        put(tmp_path, "cifar10+arm/seed0", step, 10 + step // 100)
    put(tmp_path, "cifar10+baseline/seed0", 300, 200)
    put(tmp_path, "cifar10+baseline/seed0", 600, 100)
    (tmp_path / "outputs/cifar10+baseline/seed0/look/step_00000900.png").write_bytes(b"no image")
    Image.new("RGB", (9, 9)).save(tmp_path / "outputs/cifar10+baseline/seed0/look/step_00001000.png")
    study = results()
    found = of_folders(study)
    assert found is not None
    assert (found.seed, found.bucket, found.note) == (0, "", "No pictures: without.")
    strips = {grid.label: levels(grid.png) for grid in found.shown}
    assert strips == {"baseline": [200, 100], "arm": [11, 13, 14, 16, 17, 19, 20, 22]}
    html = page(study, [], [], None, found)
    section = html[html.index('<section id="look">') :].split("</section>")[0]
    uris = re.findall(r'src="data:image/png;base64,([^"]+)"', section)
    assert [levels(base64.b64decode(uri)) for uri in uris] == list(strips.values())
    assert '<a href="#look">' in html
    assert 'id="look"' not in page(study, [], [])


def test_strips_are_of_the_bucket_that_most_arms_have(add: Add, results: Summarise, tmp_path: Path) -> None:
    add(seeds=(0,))
    add("arm", {"head.depth": 1}, seeds=(0,))
    for name in ("baseline", "arm"):
        put(tmp_path, f"cifar10+{name}/seed0", 300, 50, bucket="64x96")
    put(tmp_path, "cifar10+arm/seed0", 300, 60, bucket="48x48")
    found = of_folders(results())
    assert found is not None
    assert (found.bucket, [levels(grid.png) for grid in found.shown]) == ("64x96", [[50], [50]])
