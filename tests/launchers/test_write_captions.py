"""Captions of CIFAR-10's images: what training images say, what test images say, and how they are written."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from launchers.write_captions import CAPTIONS, NAMES, PROMPTS, TEMPLATES, main, prompts_of, write_captions
from urepa.core.errors import UserError
from urepa.data.sources.caption_files import read_captions
from urepa.data.sources.image_sources import SOURCES
from urepa.models.text_encoders.minilm import MiniLM

EACH = 6


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six images of each class and split."""
    rng = np.random.default_rng(0)
    for split in TEMPLATES:
        for name in NAMES:
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for i in range(EACH):
                Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(folder / f"{i:05d}.png")
    return tmp_path


def rows(root: Path, split: str) -> list[dict[str, str | list[str]]]:
    return [json.loads(line) for line in (root / split / "metadata.jsonl").read_text().splitlines()]


def words(text: str) -> str:
    return " ".join(re.findall(r"[a-z]+", text.lower()))


def test_held_out_templates_are_no_training_templates() -> None:
    """Also without their punctuation and capitals, and no prompt of one split is one of the other."""
    train, test = ({words(template) for template in TEMPLATES[split]} for split in ("train", "test"))
    assert (len(train), len(test)) == (len(TEMPLATES["train"]), len(TEMPLATES["test"]))
    assert not train & test
    for split, templates in TEMPLATES.items():
        assert all(template.count("{}") == 1 for template in templates), split
    every = {split: [words(p) for name in NAMES for p in prompts_of(split, name)] for split in TEMPLATES}
    assert not set(every["train"]) & set(every["test"])
    for prompts in every.values():  # a prompt says which class it is of
        assert len(set(prompts)) == len(prompts)


def test_each_image_has_captions_of_its_class_and_split(root: Path) -> None:
    write_captions(root)
    images = list(SOURCES["folder"](str(root)))
    captions = read_captions(root, images)
    assert len(captions) == len(images) == 2 * EACH * len(NAMES)
    for image in images:
        split, name = Path(image.path).parts[:2]
        own = captions[image.name]
        assert len(own) == len(set(own)) == CAPTIONS[split]
        assert set(own) <= set(prompts_of(split, name))
    for split in TEMPLATES:
        assert len({text for row in rows(root, split) if "cat/" in row["file_name"] for text in row["text"]}) > 2


def test_the_held_out_prompts_are_those_of_the_test_images(root: Path) -> None:
    write_captions(root)
    prompts = (root / PROMPTS).read_text().splitlines()
    assert prompts == [prompt for name in NAMES for prompt in prompts_of("test", name)]
    assert {text for row in rows(root, "test") for text in row["text"]} <= set(prompts)


def test_the_same_images_get_the_same_captions_whatever_is_beside_them(root: Path) -> None:
    write_captions(root)
    first = {split: rows(root, split) for split in TEMPLATES}
    for file in (root / "train" / "metadata.jsonl", root / "test" / "metadata.jsonl", root / PROMPTS):
        file.unlink()
    (root / "train" / "cat" / "00000.png").unlink()
    write_captions(root)
    assert rows(root, "train") == [row for row in first["train"] if row["file_name"] != "cat/00000.png"]
    assert rows(root, "test") == first["test"]


def test_links_to_some_classes_get_the_captions_that_they_have_among_all(root: Path) -> None:
    """As docs/experiments.md splits CIFAR-10; the source reads them."""
    some = root / "animals"
    for split in TEMPLATES:
        (some / split).mkdir(parents=True)
        for name in ("bird", "cat"):
            (some / split / name).symlink_to(root / split / name)
    write_captions(some)
    write_captions(root)
    for split in TEMPLATES:
        assert rows(some, split) == [row for row in rows(root, split) if row["file_name"][:4] in ("bird", "cat/")]
    images = list(SOURCES["folder"](str(some)))
    assert len(read_captions(some, images)) == len(images) == 2 * EACH * 2
    assert (some / PROMPTS).read_text().splitlines() == [p for n in ("bird", "cat") for p in prompts_of("test", n)]


@pytest.mark.parametrize("there", ["train/metadata.jsonl", "test/metadata.csv", PROMPTS])
def test_nothing_is_overwritten(root: Path, there: str) -> None:
    (root / there).write_text("mine")
    with pytest.raises(UserError, match="exist already and would be replaced or contradicted; delete them first"):
        write_captions(root)
    assert (root / there).read_text() == "mine"
    assert sum((root / file).exists() for file in ("train/metadata.jsonl", "test/metadata.jsonl", PROMPTS)) == (
        there != "test/metadata.csv"
    )


def test_other_folders_are_refused(root: Path) -> None:
    (root / "test" / "cat").rename(root / "test" / "tiger")
    with pytest.raises(
        UserError, match=r"test has airplane.*tiger.* as class folders; captions can be written for air"
    ):
        main([str(root)])
    assert not (root / "train" / "metadata.jsonl").exists()
    with pytest.raises(UserError, match="nowhere/train has no images as class folders"):
        main([str(root / "nowhere")])
    with pytest.raises(UserError, match="give one folder"):
        main([])


@pytest.mark.slow
def test_the_command_says_what_it_wrote(root: Path) -> None:
    command = [sys.executable, "-m", "launchers.write_captions", str(root)]
    first = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"written: {root / 'train' / 'metadata.jsonl'}, 60 lines" in first.stdout
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 1
    assert "delete them first" in again.stderr
    assert "Traceback" not in again.stderr


@pytest.mark.slow
def test_no_caption_is_cut_by_the_experiments_text_encoder() -> None:
    """Of 16 tokens, the first and the last of which are no words."""
    declared = MiniLM(layer=-1, length=16)
    try:
        declared.check_files()
    except UserError:
        pytest.skip("MiniLM's package is not installed")
    prompts = [prompt for split in TEMPLATES for name in NAMES for prompt in prompts_of(split, name)]
    assert not any(declared.build().tokenize(prompts).cut)
