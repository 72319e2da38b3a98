"""Photographs in all formats, CIFAR's binary archive, and tokens in int8."""

from __future__ import annotations

import io
import json
import struct
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from urepa.core.errors import UserError
from urepa.data.lists.samples import Sample
from urepa.data.sources import decoding
from urepa.data.sources.decoding import read, square, to_rgb
from urepa.data.sources.image_sources import SOURCES
from urepa.data.stages.image_archives import is_complete, read_images, skipped_ids, square_archives, write_images
from urepa.data.stores.lmdb_store import Part, StoreWriter
from urepa.data.stores.record_format import decode, encode
from urepa.data.stores.record_reading import Store


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    from sklearn.datasets import load_sample_image

    return Image.fromarray(load_sample_image("flower.jpg")).resize((96, 64))


def reread(image: Image.Image, form: str, **options: object) -> np.ndarray:
    file = io.BytesIO()
    image.save(file, format=form, **options)
    file.seek(0)
    return to_rgb(Image.open(file))


@pytest.mark.parametrize("mode", ["CMYK", "L", "P", "LA", "RGBA", "1"])
def test_every_mode_becomes_rgb_and_looks_the_same(photo: Image.Image, mode: str) -> None:
    form = "TIFF" if mode == "CMYK" else "PNG"
    pixels = reread(photo.convert(mode), form)
    expected = np.asarray(photo if mode in ("CMYK", "RGBA") else photo.convert(mode).convert("RGB"))
    assert (pixels.shape, pixels.dtype) == ((64, 96, 3), np.uint8)
    assert np.abs(pixels.astype(int) - expected.astype(int)).mean() < 2


def test_exif_orientation_is_honoured(photo: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it 90 degrees clockwise
    assert np.array_equal(reread(photo, "PNG", exif=exif), np.rot90(np.asarray(photo), -1))


def test_transparent_images_are_placed_on_white() -> None:
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert (reread(clear, "PNG") == 255).all()


def test_sixteen_bits_are_scaled_to_eight() -> None:
    deep = Image.fromarray(np.array([[0, 257 * 100, 65535]], dtype=np.uint16))
    assert reread(deep, "PNG")[0, :, 0].tolist() == [0, 100, 255]


@pytest.mark.parametrize("values", [np.full((4, 4), 0.5, np.float32), np.full((4, 4), 70_000, np.int32)])
def test_values_of_no_known_range_are_unreadable_rather_than_black(values: np.ndarray) -> None:
    with pytest.raises(ValueError, match="of 32"):
        reread(Image.fromarray(values), "TIFF")


def bomb(side: int) -> bytes:
    """A PNG whose header claims this width and height."""
    file = io.BytesIO()
    Image.new("L", (1, 1)).save(file, format="PNG")
    content = bytearray(file.getvalue())
    content[16:24] = struct.pack(">II", side, side)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


def test_a_header_of_impossible_size_is_a_damaged_image(photo: Image.Image, tmp_path: Path) -> None:
    whole = io.BytesIO()
    photo.save(whole, format="PNG")
    write(tmp_path, {"a": whole.getvalue(), "b": bomb(60_000)}, limit=0.5)
    assert skipped_ids(tmp_path) == {"b"}


def test_the_centre_of_the_shorter_side() -> None:
    wide = np.zeros((20, 60, 3), dtype=np.uint8)
    wide[:, 20:40] = 200
    cut = np.asarray(square(wide, 10))
    assert cut.shape == (10, 10, 3)
    assert cut[:, 2:8].min() >= 195


def write(root: Path, files: dict[str, bytes], limit: float) -> None:
    for name, data in files.items():
        (root / name).write_bytes(data)
    samples = [Sample(name, 0, name, "train") for name in files]
    load = {name: lambda name=name: to_rgb(Image.open(root / name)) for name in files}
    write_images(root, Part(), samples, load, partial(square, size=32), limit)


def test_truncated_files_are_listed_and_left_out_up_to_a_threshold(photo: Image.Image, tmp_path: Path) -> None:
    jpeg = io.BytesIO()
    photo.save(jpeg, format="JPEG")
    whole, half = jpeg.getvalue(), jpeg.getvalue()[: len(jpeg.getvalue()) // 2]
    files = {f"i{n:02d}": half if n in (3, 7) else whole for n in range(20)}
    write(tmp_path, files, limit=0.2)
    assert skipped_ids(tmp_path) == {"i03", "i07"}
    samples = [Sample(n, 0, n, "train") for n in files]
    ids = [s.sample_id for batch, _ in read_images(tmp_path, Part(), samples, 8, list) for s in batch]
    assert ids == [n for n in files if n not in ("i03", "i07")]
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(UserError, match="2 of 20 images cannot be read .first: i03: .*truncated"):
        write(other, files, limit=0.05)
    write(tmp_path, {f"j{n}": whole for n in range(2)}, limit=0)  # another list, of which none is damaged
    with pytest.raises(UserError, match="2 of 2 images cannot be read .first: k0"):
        write(tmp_path, {f"k{n}": half for n in range(2)}, limit=0.5)


@pytest.mark.slow
def test_all_unreadable_images_are_listed_and_tried_again(photo: Image.Image, tmp_path: Path) -> None:
    """In three chunks: images that were read stay, and networks do not run on missing ones."""
    jpeg = io.BytesIO()
    photo.save(jpeg, format="JPEG")
    whole, bad = jpeg.getvalue(), [f"i{n:03d}" for n in (0, 300, 599)]
    files = {name: b"damaged" if name in bad else whole for name in (f"i{n:03d}" for n in range(600))}
    with pytest.raises(UserError, match=r"^3 of 600 images cannot be read .* data.max_skipped=0.005$"):
        write(tmp_path, files, limit=0)
    folder = tmp_path / "images" / "part-0of1"
    listed = json.loads((folder / "unreadable.json").read_text())
    assert list(listed) == bad
    assert skipped_ids(tmp_path) == set()
    samples = [Sample(n, 0, n, "train") for n in files]
    assert not is_complete(tmp_path, Part(), samples)
    with pytest.raises(UserError, match=r"lacks 3 of 600 images \(first: i000\); run the stage `images`"):
        next(read_images(tmp_path, Part(), samples, 8, list))
    before = square_archives(folder)
    assert before.keys() == files.keys() - set(bad)
    write(tmp_path, files | {"i300": whole}, limit=0.005)
    assert skipped_ids(tmp_path) == {"i000", "i599"}
    assert is_complete(tmp_path, Part(), samples)
    assert square_archives(folder).keys() == files.keys() - {"i000", "i599"}
    assert list(json.loads((folder / "unreadable.json").read_text())) == ["i000", "i599"]


def test_one_limit_of_pixels_applies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Messages name this limit, whatever Pillow's own is, and nothing is decoded."""
    for side, words in ((13_000, "its 13000 x 13000 pixels are more than"), (60_000, "it has more than")):
        (tmp_path / "a.png").write_bytes(bomb(side))
        with pytest.raises(ValueError, match=f"^{words} the limit of 120 megapixels; reduce it$"):
            read(tmp_path / "a.png")
    monkeypatch.setattr(decoding, "MOST_PIXELS", 12)
    for size in ((4, 3), (13, 1)):
        Image.new("RGB", size).save(tmp_path / "b.png")
        if size == (4, 3):
            assert read(tmp_path / "b.png").shape == (3, 4, 3)
    with pytest.raises(ValueError, match="its 13 x 1 pixels"):
        read(tmp_path / "b.png")


@pytest.mark.parametrize(("labels", "files"), [(1, ("data_batch_1", "test_batch")), (2, ("train", "test"))])
def test_cifars_binary_archive(tmp_path: Path, labels: int, files: tuple[str, str]) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 3, 32, 32, 3), dtype=np.uint8)
    for file, pictures in zip(files, images, strict=True):
        records = [bytes([9] * (labels - 1) + [i]) + p.transpose(2, 0, 1).tobytes() for i, p in enumerate(pictures)]
        (tmp_path / f"{file}.bin").write_bytes(b"".join(records))
    rows = list(SOURCES["cifar_binary"](str(tmp_path)))
    assert [(r.split, r.class_id) for r in rows] == [(s, i) for s in ("train", "test") for i in range(3)]
    assert all(np.array_equal(r.load(), p) for r, p in zip(rows, images.reshape(6, 32, 32, 3), strict=True))
    last = tmp_path / f"{files[1]}.bin"
    last.write_bytes(last.read_bytes()[:-1])
    with pytest.raises(UserError, match=f"{last} is truncated: it has {labels + 3071} bytes after record 2"):
        list(SOURCES["cifar_binary"](str(tmp_path)))


def test_int8_tokens_lose_less_than_5e_4_of_cosine_on_real_tokens(photo: Image.Image) -> None:
    from urepa.models.teachers.efficientnet_net import EfficientNetLite0Network

    image = torch.from_numpy(np.asarray(photo).copy()).permute(2, 0, 1)[None].float() / 255
    tokens = EfficientNetLite0Network(128, [4, 4], 32).tokens(image).x_BND[0]
    raw = encode(tokens.numpy(), "int8")
    out = decode(np.frombuffer(raw, dtype=np.uint8).copy()[None], tuple(tokens.shape), "int8")[0]
    assert len(raw) < 0.51 * len(encode(tokens.numpy(), "float16"))
    assert float(1 - F.cosine_similarity(tokens, out, dim=-1).mean()) < 5e-4


def test_int8_keeps_tokens_with_one_very_large_dimension() -> None:
    tokens = np.random.default_rng(0).standard_normal((64, 1024)).astype(np.float32)
    tokens[:, 77] = 60.0  # as some layers of DINOv2 have
    raw = np.frombuffer(encode(tokens, "int8"), dtype=np.uint8).copy()
    out = decode(raw[None], tokens.shape, "int8")[0].numpy()
    cosine = (tokens * out).sum(1) / np.linalg.norm(tokens, axis=1) / np.linalg.norm(out, axis=1)
    assert 1 - cosine.mean() < 5e-4


def test_an_int8_store_reads_like_any_other(tmp_path: Path) -> None:
    value = np.random.default_rng(0).standard_normal((4, 128)).astype(np.float32)
    with StoreWriter(tmp_path, dtype="int8") as writer:
        writer.put([("a", value)])
    store = Store(tmp_path, {"shape": [4, 128], "dtype": "int8"})
    assert np.abs(store.read(["a"])[0] - value).max() < 0.02
    store.close()
