"""Each fault that caches of spatial tokens had is found by its name, with the encoder, the images or the latents to
compare with, and right caches pass."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import shard_folders
import torch
import torch.nn.functional as F
from forks import run
from PIL import Image
from shard_folders import BUCKETS, EACH, encoder_at, images_of, over, samples_of, write_bucket
from torch import Tensor

from urepa.config.declared import declaration_of
from urepa.core.errors import UserError
from urepa.core.files import read_json
from urepa.data.alignment.references import EncodedImages, LocalFeatures, central
from urepa.data.alignment.verdicts import State, judge
from urepa.data.alignment.views import View, displacement, possible_views
from urepa.data.stages.build import Build
from urepa.data.stages.exchange import Exchange
from urepa.data.stages.image_archives import ImageArchive
from urepa.data.stores.digests import IN_MANIFEST
from urepa.data.stores.lmdb_store import Part, write_store
from urepa.data.stores.record_reading import Store
from urepa.models.teachers.efficientnet_net import EfficientNetLite0Network
from urepa.models.teachers.rectangle_sizes import teacher_on_grid

SIZE, GRID = BUCKETS["96x160"], (6, 10)
REGISTERS = 4


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shard_folders.write_photographs(tmp_path_factory.mktemp("diagnose") / "photographs")


@pytest.fixture(scope="module")
def images(photographs: Path) -> Tensor:
    return images_of(photographs, "96x160")


@pytest.fixture(scope="module")
def references(images: Tensor) -> dict[str, Any]:
    on_grid = teacher_on_grid(EfficientNetLite0Network(128, [8, 8], 16), GRID)
    return {
        "encoder": EncodedImages("the encoder's tokens", images, on_grid),
        "images": LocalFeatures("the images", images),
        "latents": LocalFeatures("the latents", F.avg_pool2d(images, 8)),
    }


def with_registers(tokens_SND: Tensor) -> Tensor:
    """Four tokens that are alike in all images before the patches."""
    registers = torch.randn(1, REGISTERS, tokens_SND.shape[-1], generator=torch.Generator().manual_seed(0))
    return torch.cat([registers.expand(len(tokens_SND), -1, -1) * 0.1, tokens_SND], dim=1)


def of_central_square(images: Tensor) -> Tensor:
    """As `Resize(256), CenterCrop(224)`: 14x14 tokens."""
    side = round(min(SIZE) * 224 / 256)
    square = central(images, (side / SIZE[0], side / SIZE[1]))
    return encoder_at(F.interpolate(square, (224, 224), mode="bicubic", antialias=True))


def grid_of_14(images: Tensor) -> Tensor:
    """The image resized to multiples of 14 pixels, with patches of 14: 7x11 tokens."""
    return encoder_at(images, grid=(7, 11))


COUNT = GRID[0] * GRID[1]
FAULTS: dict[str, tuple[Callable[[Tensor], Tensor], str, float]] = {  # what it says, and how far apart in tokens
    "centre": (of_central_square, "196 tokens instead of 6x10=60; they show .*14x14 grid of the central square", 3.5),
    "square": (lambda x: encoder_at(central(x, (1.0, 0.6)), grid=GRID), "they show the central square", 1.0),
    "half": (lambda x: encoder_at(central(x, (0.5, 0.5)), grid=GRID), "they show the central 50.0% of each side", 1.5),
    "14": (grid_of_14, "77 tokens instead of 6x10=60; they show .*patches of 14 pixels, 7x11", 2.5),
    "14 cut": (lambda x: grid_of_14(x)[:, :COUNT], "they show (patches of 14 pixels, 7x11|rows of 11 tokens)", 2.5),
    "registers": (
        lambda x: with_registers(encoder_at(x))[:, :COUNT],
        r"they show 4 other tokens \(class, registers\) before the patches",
        4.0,
    ),
    "all registers": (lambda x: with_registers(encoder_at(x)), "64 tokens instead of 60|4 other tokens", 4.0),
    "mirror": (lambda x: encoder_at(x.flip(-1)), "they show mirrored", 5.0),
    "shear": (lambda x: encoder_at(x, grid=(6, 11))[:, :COUNT], "they show (rows of 11 tokens|patches of 14)", 2.5),
    "other": (lambda x: encoder_at(x).roll(1, 0), "they show another sample", math.nan),
}


@pytest.mark.slow
@pytest.mark.parametrize("reference", ["encoder", "images", "latents"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(images: Tensor, references: dict[str, Any], fault: str, reference: str) -> None:
    make, said, apart = FAULTS[fault]
    found = judge(make(images), GRID, SIZE, references[reference])
    assert found.state is State.misaligned, found.text
    assert re.search(said, found.text), found.text
    if math.isnan(apart):
        assert found.apart is None
    else:
        assert found.apart is not None
        assert abs(found.apart - apart) < 1.5


@pytest.mark.slow
@pytest.mark.parametrize("reference", ["encoder", "images", "latents"])
def test_right_tokens_are_never_called_misaligned(images: Tensor, references: dict[str, Any], reference: str) -> None:
    found = judge(encoder_at(images), GRID, SIZE, references[reference])
    assert found.findings[0].view.name == "as declared", found.text
    assert found.state is (State.aligned if reference == "encoder" else found.state)
    assert found.state is not State.misaligned


def test_noise_few_samples_and_values_that_are_not_finite(images: Tensor, references: dict[str, Any]) -> None:
    noise = torch.randn(EACH, COUNT, 32, generator=torch.Generator().manual_seed(0))
    found = judge(noise, GRID, SIZE, references["latents"])
    assert (found.state, found.text) == (
        State.unknown,
        "the tokens explain too little of the latents in every known view",
    )
    found = judge(encoder_at(images[:4]), GRID, SIZE, LocalFeatures("the images", images[:4]))
    assert (found.state, found.text) == (State.unknown, "4 samples are too few to compare, 6 are needed")
    noise[3, 2, 1] = math.inf
    assert judge(noise, GRID, SIZE, references["latents"]).state is State.misaligned


@pytest.mark.slow
def test_the_encoder_need_not_be_the_one_that_made_the_tokens(images: Tensor, references: dict[str, Any]) -> None:
    """Tokens of a random DINOv3, against the images' and the latents' own colours: with the description's slice, which
    counts the registers among the patches, and with the right one. Against EfficientNet's tokens, which they hardly
    explain, neither is called right or wrong."""
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    torch.manual_seed(0)
    config = DINOv3ViTConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, num_register_tokens=REGISTERS
    )
    network = DINOv3ViTModel(config).eval()
    with torch.no_grad():
        hidden = network((images - 0.5) / 0.5).last_hidden_state
    assert hidden.shape[1] == 1 + REGISTERS + COUNT
    for name in ("images", "latents"):
        wrong = judge(hidden[:, 1 : COUNT + 1], GRID, SIZE, references[name])
        assert wrong.state is State.misaligned
        assert "4 other tokens (class, registers) before the patches" in wrong.text
        right = judge(hidden[:, 1 + REGISTERS :], GRID, SIZE, references[name])
        assert right.state is not State.misaligned
        assert right.findings[0].view.name == "as declared"
    assert judge(hidden[:, 1 : COUNT + 1], GRID, SIZE, references["encoder"]).state is State.unknown


def test_displacements_are_those_of_the_geometry() -> None:
    def of(name: str, count: int, grid: tuple[int, int], size: tuple[int, int]) -> float | None:
        view = next(v for v in possible_views(count, grid, size) if v.name.startswith(name))
        return displacement(view, count, grid)

    square = (64, 64)
    assert of("as declared", 16, (4, 4), square) == pytest.approx(0, abs=1e-5)
    assert of("mirrored", 16, (4, 4), square) == pytest.approx(2)  # columns 3, 1, 1 and 3 apart
    apart = (0.125**0.5 + 2 * 0.625**0.5 + 1.125**0.5) / 4  # half of the distance from the centre
    assert of("the central 50.0%", 16, (4, 4), square) == pytest.approx(apart, rel=1e-2)
    assert of("another", 16, (4, 4), square) is None
    by_one = displacement(View("", (1, 8), 1), 9, (1, 8))
    assert by_one == pytest.approx(1)
    by_four = displacement(View("", (64, 64), 4), 4096, (64, 64))
    assert by_four == pytest.approx((60 * 4 + 4 * (60**2 + 1) ** 0.5) / 64, rel=1e-2)  # four columns wrap


# --- shards and stores ---------------------------------------------------------------------------------------


@pytest.fixture
def exchange(compose: Callable[..., Any], photographs: Path, tmp_path: Path) -> Callable[..., Exchange]:
    def made(webdataset: Path | None, compared_with: str | None = None, *more: str) -> Exchange:
        parts = compose(*over(photographs, tmp_path / "root", *more), root="preprocess")
        given = None if webdataset is None else str(webdataset)
        declared = declaration_of(parts["data"]), declaration_of(parts["teacher"])
        return Exchange(*declared, given, None, compared_with, 8)

    return made


def write_shards(root: Path, photographs: Path, make: dict[str, Callable[[Tensor], Tensor]]) -> Path:
    """Shards of all buckets, right but for those in `make`."""
    for name in BUCKETS:
        images = images_of(photographs, name)
        write_bucket(root, name, samples_of(images, make.get(name, encoder_at)(images)))
    return root


@pytest.mark.slow
def test_shards_with_a_fault_in_one_bucket(
    exchange: Callable[..., Exchange], photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = write_shards(tmp_path / "in", photographs, {"96x160": lambda x: with_registers(encoder_at(x))[:, :COUNT]})
    said = r"1 of 3 caches are misaligned \(first: bucket_160x96, 60 tokens: they show 4 other tokens .*; stage=repair"
    with pytest.raises(UserError, match=said):
        exchange(shards).run("diagnose")
    out = capsys.readouterr().out
    assert out.count(" aligned ") == 2
    places = tmp_path / "root" / "diagnosis"
    facts = read_json(places / "diagnosis.json", list)
    assert [fact["state"] for fact in facts] == ["aligned", "aligned", "misaligned"]
    assert sorted(p.name for p in places.glob("*.png")) == [
        "bucket_128x128,_64_tokens.png",
        "bucket_160x96,_60_tokens.png",
        "bucket_96x160,_60_tokens.png",
    ]
    with Image.open(places / "bucket_160x96,_60_tokens.png") as picture:
        assert picture.height > 4 * 150  # four rows: images, tokens, the encoder's, and as the view that fits


@pytest.mark.slow
def test_right_shards_pass_and_half_repaired_ones_do_not(
    exchange: Callable[..., Exchange], photographs: Path, tmp_path: Path
) -> None:
    exchange(write_shards(tmp_path / "right", photographs, {})).run("diagnose")
    images = images_of(photographs, "96x160")
    root = write_shards(tmp_path / "half", photographs, {})
    former = samples_of(images, of_central_square(images))
    write_bucket(tmp_path / "former", "96x160", former)
    place = root / "bucket_160x96"
    shutil.copy(tmp_path / "former" / "bucket_160x96" / "shard-000000.tar", place / "shard-000001.tar")
    with pytest.raises(UserError, match="have the same id"):  # of the same samples twice
        exchange(root).run("diagnose")
    write_bucket(tmp_path / "more", "96x160", former, lambda key, own: own.update(json=renamed(own["json"], key)))
    shutil.copy(tmp_path / "more" / "bucket_160x96" / "shard-000000.tar", place / "shard-000001.tar")
    with pytest.raises(UserError, match=r"1 of 4 caches are misaligned \(first: bucket_160x96, 196 tokens"):
        exchange(root, "latents").run("diagnose")


def renamed(content: bytes, key: str) -> bytes:
    return json.dumps(json.loads(content) | {"id": f"former_{key}"}).encode()


@pytest.mark.slow
def test_shards_are_repaired_from_the_tracks_own_stores(
    exchange: Callable[..., Exchange], photographs: Path, tmp_path: Path
) -> None:
    exchange(write_shards(tmp_path / "right", photographs, {})).run("read_shards")
    wrong = write_shards(tmp_path / "wrong", photographs, {"160x96": lambda x: encoder_at(x.flip(-1))})
    exchange(wrong).run("repair")
    assert (wrong / "bucket_96x160.misaligned" / "shard-000000.tar").is_file()
    exchange(wrong).run("diagnose")
    again = exchange(wrong, None, f"data.root={tmp_path / 'again'}")
    again.run("read_shards")
    stores = [Store(p) for p in sorted(tmp_path.glob("*/160x96/image_tokens*"))]
    key = next(iter(stores[0].keys()))
    assert (stores[0].read([key]) == stores[1].read([key])).all()


@pytest.mark.slow
def test_a_tracks_own_tokens_are_judged(
    exchange: Callable[..., Exchange], photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exchange(write_shards(tmp_path / "right", photographs, {})).run("read_shards")
    own = exchange(None)
    track = own.track.build()
    for bucket in track.buckets:
        images = images_of(photographs, bucket.name)
        tokens = encoder_at(images.flip(-1) if bucket.name == "96x160" else images)
        grid = bucket.size[0] // 16, bucket.size[1] // 16
        teacher = teacher_on_grid(EfficientNetLite0Network(128, [8, 8], 16), grid).manifest() | {"sees": "images"}
        ids = [f"{bucket.name}_{i:02d}" for i in range(EACH)]
        facts = {"kind": "tokens", "key_suffix": "", "flip": "none", "teacher": teacher}
        write_store(bucket.tokens, zip(ids, tokens.numpy(), strict=True), facts)
    with pytest.raises(
        UserError, match="1 of 6 caches are misaligned .first: 96x160/dino_tokens_lmdb: they show mirrored"
    ):
        own.run("diagnose")
    for compared_with in ("images", "latents"):
        with pytest.raises(UserError, match="1 of 6 caches are misaligned .first: 96x160/dino_tokens_lmdb"):
            exchange(None, compared_with).run("diagnose")
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(next(photographs.glob("*.png")), other / "one.png")
    with pytest.raises(UserError, match="no image .* to compare its tokens with; give the folder"):
        exchange(None, None, f"data.images={other}").run("diagnose")
    with pytest.raises(UserError, match="is not a folder here, so there are no images to compare tokens with"):
        exchange(None, None, f"data.images={tmp_path / 'gone'}").run("diagnose")
    assert capsys.readouterr().out.count("  aligned  ") >= 5


@pytest.mark.slow
def test_a_tracks_own_tokens_are_set_aside_and_made_again(
    exchange: Callable[..., Exchange], photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    captioned = Path(shutil.copytree(photographs, tmp_path / "captioned"))
    for file in captioned.glob("*.png"):
        file.with_suffix(".txt").write_text("a picture")
    own = exchange(None, None, f"data.images={captioned}")
    build = Build(own.track.build(), own.teacher.build(), Part(), 8)
    for stage in ("manifest", "images", "tokens"):
        build.run(stage)
    own.run("diagnose")
    bucket = next(b for b in build.track.buckets if b.name == "96x160")
    store, archive = Store(bucket.tokens), ImageArchive(bucket.folder)
    ids = list(store.keys())
    right = store.read(ids)
    store.close()
    wrong = encoder_at(central(archive(ids), (0.5, 0.5)), grid=GRID)
    facts = {key: value for key, value in store.manifest.items() if key not in IN_MANIFEST}
    write_store(bucket.tokens, zip(ids, wrong.numpy(), strict=True), facts)
    own.run("repair")
    said = capsys.readouterr().out
    assert "they show the central 50.0% of each side" in said
    aside = bucket.folder / "dino_tokens_lmdb.misaligned"
    assert f"set aside: {aside}" in said
    assert (Store(aside).read(ids) == wrong.half().numpy()).all()
    assert (Store(bucket.tokens).read(ids) == right).all()
    own.run("repair")
    assert "nothing is misaligned, so nothing was changed" in capsys.readouterr().out


@pytest.mark.slow
def test_the_command_ends_with_1_if_something_is_misaligned(photographs: Path, tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "in", photographs, {"128x128": lambda x: encoder_at(x.flip(-2))})
    given = [*over(photographs, tmp_path / "root"), "stage=diagnose", f"webdataset={shards}"]
    done = run(["-m", "urepa.preprocess", *given], tmp_path)
    assert done.returncode == 1
    assert "1 of 3 caches are misaligned (first: bucket_128x128, 64 tokens: they show upside down" in done.stderr
    assert "Traceback" not in done.stderr
    right = write_shards(tmp_path / "right", photographs, {})
    done = run(["-m", "urepa.preprocess", *given[:-1], f"webdataset={right}"], tmp_path)
    assert done.returncode == 0, done.stderr
