"""Pictures that evaluations write, in the report: of every declared one, embedded and escaped."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from made_up import HOSTILE
from PIL import Image

from urepa.config.parts import KINDS, SCHEMAS
from urepa.core.evaluation_protocols import Picture
from urepa.evaluation.measures.image_swap import PICTURE as SWAP
from urepa.reports.comparison.arms import ComparedArms
from urepa.reports.comparison.evaluation_pictures import LARGEST, Pictures, evaluation_pictures, on_page, small_jpeg
from urepa.reports.comparison.page import page
from urepa.reports.comparison.results import Results
from urepa.reports.comparison.sample_grids import SHOWN_AT_MOST, list_in_folder, read_file

Add, Summarise = Callable[..., None], Callable[..., Results]
HEAT = Picture("heat/of_{name}_{step}.png", "Heat <b>", "A row is a <i>layer</i>.")


@dataclass
class Heat:
    """An evaluation of another package that writes pictures of several names."""

    _target_: str = f"{__name__}.Heat"
    pictures: ClassVar[tuple[Picture, ...]] = (HEAT,)

    def __call__(self, context: Any) -> dict[str, float]:
        return {}


@pytest.fixture(autouse=True)
def _declared() -> Iterator[None]:
    """Declares the evaluation as `urepa.config.own_package` does, and removes it after the test."""
    KINDS["evaluation"][Heat._target_] = SCHEMAS[Heat._target_] = Heat
    yield
    del KINDS["evaluation"][Heat._target_], SCHEMAS[Heat._target_]


def put(tmp_path: Path, run: str, file: str, level: int, bucket: str = "") -> Path:
    """Writes a picture of one grey level into a run's folder."""
    path = tmp_path / "outputs" / run / (f"buckets/{bucket}" if bucket else "") / file
    path.parent.mkdir(exist_ok=True, parents=True)
    Image.fromarray(np.full((20, 30, 3), level, np.uint8)).save(path)
    return path


def of_folders(study: ComparedArms) -> list[Pictures]:
    return evaluation_pictures(study, list_in_folder, read_file)


def level(jpeg: bytes) -> int:
    return int(np.asarray(Image.open(io.BytesIO(jpeg), formats=["JPEG"]))[10, 15, 0])


def shown(pictures: Pictures) -> list[tuple[str, int]]:
    return [(one.label, level(one.jpeg)) for one in pictures.shown]


def test_a_path_gives_the_name_and_step_that_it_was_made_of() -> None:
    assert HEAT.file(12, "a_b") == "heat/of_a_b_00000012.png"
    assert HEAT.read("RUN/buckets/8x8/heat/of_a_b_00000012.png") == ("a_b", 12)
    assert SWAP.read("samples/image_swap_00000300.png") == ("", 300)
    others = ["samples/step_00000300.png", "samples/image_swap_300.png", "xsamples/image_swap_00000300.png"]
    assert [SWAP.read(path) for path in [*others, "samples/image_swap_00000300.png.tmp"]] == [None] * 4


def test_pictures_are_of_the_seed_and_step_that_most_arms_have(add: Add, results: Summarise, tmp_path: Path) -> None:
    """Only the baseline has seed 0, with a later step. Another picture has its own seed."""
    add(seeds=(0, 1))
    add("arm", {"head.depth": 1}, seeds=(0, 1))
    add("without", {"head.depth": 3}, seeds=(1,))
    put(tmp_path, "cifar10+baseline/seed0", SWAP.file(600), 1)
    for i, name in enumerate(("baseline", "arm")):
        put(tmp_path, f"cifar10+{name}/seed1", SWAP.file(300), 10 + i)
    put(tmp_path, "cifar10+arm/seed1", SWAP.file(200), 99)
    put(tmp_path, "cifar10+arm/seed0", HEAT.file(100, "b"), 50)
    put(tmp_path, "cifar10+arm/seed0", HEAT.file(100, "a"), 51)
    found = {one.title: one for one in of_folders(results().study)}
    assert list(found) == [SWAP.title, "Heat <b>: a", "Heat <b>: b"]
    swap = found[SWAP.title]
    assert (swap.seed, swap.step, shown(swap)) == (1, 300, [("baseline", 10), ("arm", 11)])
    assert swap.note == "None of this step: without."
    assert (found["Heat <b>: a"].seed, shown(found["Heat <b>: a"])) == (0, [("arm", 51)])


def test_all_buckets_are_shown_where_they_fit(add: Add, results: Summarise, tmp_path: Path) -> None:
    """Of two arms all three buckets; of five arms the two that most have."""
    buckets = ("48x80", "64x64", "80x48")
    for i in range(2):
        add(f"arm{i}", {"head.depth": i + 1}, seeds=(0,))
        for j, bucket in enumerate(buckets):
            put(tmp_path, f"cifar10+arm{i}/seed0", SWAP.file(300), 10 * i + j, bucket)
    (found,) = of_folders(results().study)
    assert shown(found) == [(f"arm{i}, bucket {b}", 10 * i + j) for i in range(2) for j, b in enumerate(buckets)]
    assert found.note == ""
    for i in range(2, 5):
        add(f"arm{i}", {"head.depth": i + 1}, seeds=(0,))
        for j, bucket in enumerate(buckets[1:]):
            put(tmp_path, f"cifar10+arm{i}/seed0", SWAP.file(300), 10 * i + j, bucket)
    (found,) = of_folders(results().study)
    assert [one.label for one in found.shown] == [f"arm{i}, bucket {b}" for i in range(5) for b in buckets[1:]]
    assert found.note == "Not shown are the buckets 48x80."


@pytest.mark.slow
def test_of_many_arms_the_first_are_shown(add: Add, results: Summarise, tmp_path: Path) -> None:
    for i in range(SHOWN_AT_MOST + 2):
        add(f"arm{i:02d}", {"head.depth": 1 + i}, seeds=(0,), points=2)
        put(tmp_path, f"cifar10+arm{i:02d}/seed0", SWAP.file(300), i)
    (found,) = of_folders(results().study)
    assert len(found.shown) == SHOWN_AT_MOST
    assert found.note == f"Shown are the first {SHOWN_AT_MOST} of {SHOWN_AT_MOST + 2}."


def test_the_page_has_them_embedded_and_escaped(add: Add, results: Summarise, tmp_path: Path) -> None:
    add(seeds=(0,))
    put(tmp_path, "cifar10+baseline/seed0", HEAT.file(600, "<u>"), 30)
    for i, name in enumerate(HOSTILE):
        add(name, {"head.depth": 3 + i}, seeds=(0,), name=f"arm{i}")
        put(tmp_path, f"arm{i}/seed0", HEAT.file(600, "<u>"), 40 + i)
    put(tmp_path, "arm0/seed0", HEAT.file(600, "lost"), 1).write_bytes(b"<svg onload=alert(1)>")
    study = results()
    html = page(study, [], [], None, None, of_folders(study.study))
    section = html[html.index('<section id="pictures">') :].split("</section>")[0]
    assert '<a href="#pictures">' in html
    assert section.count("<img ") == 1 + len(HOSTILE)
    uris = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', section)
    assert sorted(level(base64.b64decode(uri)) for uri in uris) == [30, *range(40, 40 + len(HOSTILE))]
    assert "Heat &lt;b&gt;: &lt;u&gt;</h3>" in section
    assert "A row is a &lt;i&gt;layer&lt;/i&gt;. Step 600, seed 0 of each arm shown." in section
    assert not re.search(r"<(script|svg|u|b|i)>", section)
    assert "http" not in section
    assert 'id="pictures"' not in page(study, [], [])


def test_a_picture_is_encoded_again_small(tmp_path: Path) -> None:
    png = io.BytesIO()
    Image.new("RGB", (LARGEST * 2, 400), "teal").save(png, format="PNG")
    jpeg = small_jpeg(png.getvalue() + b"behind")
    assert jpeg is not None
    assert Image.open(io.BytesIO(jpeg)).size == (LARGEST, 200)
    assert b"behind" not in jpeg
    assert small_jpeg(png.getvalue()[:60]) is None


def test_unreadable_files_are_named(add: Add, results: Summarise, tmp_path: Path) -> None:
    add(seeds=(0,))
    add("arm", {"head.depth": 1}, seeds=(0,))
    put(tmp_path, "cifar10+baseline/seed0", SWAP.file(600), 7)
    put(tmp_path, "cifar10+arm/seed0", SWAP.file(600), 8).write_bytes(b"no image")
    (found,) = of_folders(results().study)
    assert (shown(found), found.note) == ([("baseline", 7)], "Unreadable image files: arm.")
    assert on_page(found)["shown"][0]["label"] == "baseline"
