"""IDX files as class folders: their bytes are written here by hand, and every damage is refused in one line."""

from __future__ import annotations

import gzip
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from launchers.idx_images import main, write_class_folders
from urepa.core.errors import UserError
from urepa.data.sources.image_sources import SOURCES

N, H, W = 12, 3, 5
LABELS = bytes([0, 9, 1, 1, 0, 9, 9, 1, 0, 0, 1, 9])


def idx(values: bytes, *sizes: int, kind: int = 8) -> bytes:
    """The published layout: two zero bytes, type, number of dimensions, big-endian dimensions, values."""
    return b"\0\0" + bytes([kind, len(sizes)]) + struct.pack(f">{len(sizes)}I", *sizes) + values


PIXELS = bytes((7 * i + i // 11) % 256 for i in range(N * H * W))
IMAGES_FILE, LABELS_FILE = idx(PIXELS, N, H, W), idx(LABELS, N)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A file of images, compressed, one of labels, not compressed, and a folder that is not there."""
    images, labels = tmp_path / "images.gz", tmp_path / "labels"
    images.write_bytes(gzip.compress(IMAGES_FILE))
    labels.write_bytes(LABELS_FILE)
    return images, labels, tmp_path / "data" / "train"


def test_the_folders_hold_the_images_of_the_file(files: tuple[Path, Path, Path]) -> None:
    assert write_class_folders(*files) == {"0": 4, "1": 4, "9": 4}
    written = sorted(path.relative_to(files[2]).as_posix() for path in files[2].rglob("*.png"))
    assert written == sorted(f"{label}/{number:02d}.png" for number, label in enumerate(LABELS))
    for number, label in enumerate(LABELS):
        here = np.asarray(Image.open(files[2] / str(label) / f"{number:02d}.png"))
        assert here.dtype == np.uint8
        assert here.shape == (H, W)
        assert here.tobytes() == PIXELS[number * H * W : (number + 1) * H * W]
    assert [path.name for path in files[2].parent.iterdir()] == ["train"], "no temporary folder is left"


def test_a_track_reads_them_as_classes_in_the_order_of_the_labels(files: tuple[Path, Path, Path]) -> None:
    write_class_folders(*files)
    rows = list(SOURCES["folder"](str(files[2].parent)))
    assert [row.class_id for row in rows] == [0] * 4 + [1] * 4 + [2] * 4
    assert {row.split for row in rows} == {"train"}
    grey = np.frombuffer(PIXELS[: H * W], np.uint8).reshape(H, W, 1)  # the first image has label 0
    np.testing.assert_array_equal(rows[0].load(), np.repeat(grey, 3, 2))


def test_names_of_classes_have_equal_lengths(files: tuple[Path, Path, Path]) -> None:
    """10 comes after 9, also in alphabetical order."""
    files[1].write_bytes(idx(bytes([9, 10] * (N // 2)), N))
    assert list(write_class_folders(*files)) == ["09", "10"]


DAMAGED = {
    "empty": (b"", "is not an IDX file, which begins with two zero bytes"),
    "another file": (b"\x89PNG\r\n\x1a\n", "is not an IDX file"),
    "floats": (idx(bytes(4 * N * H * W), N, H, W, kind=0x0D), "has values of type 0x0d; images are unsigned bytes"),
    "labels": (LABELS_FILE, "has 1 dimensions; images have 3"),
    "colours": (idx(PIXELS * 3, N, H, W, 3), "has 4 dimensions; images have 3"),
    "cut within its dimensions": (IMAGES_FILE[:11], "is truncated: it ends within its dimensions"),
    "without images": (idx(b"", 0, H, W), "has no images: its shape is 0x3x5"),
    "little-endian": (
        IMAGES_FILE[:4] + struct.pack("<3I", N, H, W) + PIXELS,
        "has 180 values, but its shape 201326592x",
    ),
    "cut": (IMAGES_FILE[:-1], "has 179 values, but its shape 12x3x5 has 180; copy it again"),
    "too long": (IMAGES_FILE + b"\0", "has 181 values, but its shape 12x3x5 has 180"),
    "cut and compressed": (gzip.compress(IMAGES_FILE)[:-12], "is damaged (Compressed file ended before"),
    "changed and compressed": (gzip.compress(IMAGES_FILE)[:-8] + b"\0" * 8, "is damaged (CRC check failed"),
    "of fewer images": (idx(PIXELS[: 11 * H * W], 11, H, W), "has 11 images and "),
}


@pytest.mark.parametrize("which", DAMAGED)
def test_other_files_are_refused_in_one_line(files: tuple[Path, Path, Path], which: str) -> None:
    content, words = DAMAGED[which]
    files[0].write_bytes(content)
    with pytest.raises(UserError, match=re.escape(words)) as refused:
        write_class_folders(*files)
    assert "\n" not in str(refused.value)
    assert str(files[0]) in str(refused.value)
    assert not files[2].parent.exists(), "nothing is written"


def test_nothing_is_overwritten_or_left_half_written(
    files: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(image: Image.Image, path: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Image.Image, "save", full)
        with pytest.raises(OSError, match="No space left"):
            write_class_folders(*files)
    assert list(files[2].parent.iterdir()) == []
    (files[2] / "cat").mkdir(parents=True)
    with pytest.raises(UserError, match="train exists already; give a new folder, or delete it"):
        write_class_folders(*files)
    assert list(files[2].iterdir()) == [files[2] / "cat"]


def test_wrong_arguments_are_refused(files: tuple[Path, Path, Path]) -> None:
    with pytest.raises(UserError, match="give two files and a folder: python -m launchers.idx_images IMAGES LABELS"):
        main([str(files[0]), str(files[2])])
    with pytest.raises(UserError, match="there is no file .*nowhere; give the file of labels"):
        main([str(files[0]), "nowhere", str(files[2])])


@pytest.mark.slow
def test_the_command_says_what_it_wrote(files: tuple[Path, Path, Path]) -> None:
    command = [sys.executable, "-m", "launchers.idx_images", *map(str, files)]
    first = subprocess.run(command, capture_output=True, text=True, check=True)
    assert first.stdout == f"written: {files[2]}, 12 images in 3 classes (0: 4, 1: 4, 9: 4)\n"
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 1
    assert "exists already" in again.stderr
    assert "Traceback" not in again.stderr
