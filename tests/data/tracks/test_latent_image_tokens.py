"""The stage `image_tokens` of a latent track: in one part or several the same records and statistics, verified, read in
batches, and refused with other settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from urepa.core.errors import UserError
from urepa.core.part_names import CLS, PATCHES, TEXT
from urepa.data.image_statistics import ImageStatistics
from urepa.data.reader import Layout, TrainingReader
from urepa.data.stages.build import Build
from urepa.data.stores.lmdb_store import Part
from urepa.data.stores.record_reading import Store
from urepa.method.objectives.flow_math import FlowMath

pytestmark = pytest.mark.slow
IMAGE = (
    "+teacher@data.image_encoder=efficientnet_lite0_s16",
    *("data.image_encoder.image_size=64", "data.image_encoder.grid=[4,4]"),
    "+data.dropout={text+image:0.1,image:0.3,text:0.05}",
)
GRIDS = {"64x64": (4, 4), "48x80": (3, 5), "80x48": (5, 3)}


@pytest.fixture(scope="module")
def built(bucket_build: Callable[..., Build], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("image_tokens") / "cache"
    bucket_build(root, *IMAGE).run("all")
    return root


def stores(root: Path) -> list[Path]:
    return sorted(folder for folder in root.glob("*/image_tokens_*") if folder.is_dir())


def test_parts_make_the_same_records_and_statistics(
    bucket_build: Callable[..., Build], built: Path, tmp_path: Path
) -> None:
    bucket_build(tmp_path, *IMAGE).run("manifest")
    for index in (1, 0):
        for stage in ("images", "image_tokens"):
            bucket_build(tmp_path, *IMAGE, part=Part(index, 2)).run(stage)
    assert [folder.parent.name for folder in stores(built)] == sorted(GRIDS)
    for ours, theirs in zip(stores(tmp_path), stores(built), strict=True):
        one, other = Store(ours), Store(theirs)
        assert torch.allclose(one.statistics(), other.statistics(), rtol=1e-6)
        ids = [line.split(",")[0] for line in (theirs.parent / "train.csv").read_text().splitlines()[1:]]
        assert torch.allclose(one.tensor(ids).float(), other.tensor(ids).float(), atol=2e-3)
        one.close()
        other.close()


def test_batches_of_one_bucket_have_its_grid(bucket_build: Callable[..., Build], built: Path) -> None:
    cache = bucket_build(built, *IMAGE).track.open(None)
    seen = set()
    reader = TrainingReader(cache, FlowMath("linear", "uniform"), Layout(4), seed=0)
    for step in range(8):
        (batch,) = reader.read(step)
        bucket = next(b for b in cache.buckets if tuple(batch.x0.shape[2:]) == tuple(b.latents.shape[-2:]))
        assert batch.condition[PATCHES].grid == GRIDS[bucket.bucket]
        assert {TEXT, CLS, PATCHES} <= set(batch.condition.names)
        seen.add(bucket.bucket)
    assert len(seen) > 1
    print_ = cache.fingerprint()
    assert print_["image_tokens"].keys() == GRIDS.keys()
    assert "image_tokens" in print_["content"]
    means = ImageStatistics.of([bucket.image_tokens for bucket in cache.buckets])
    values = torch.cat([b.image_tokens.tensor(list(b.splits["train"].ids())).float()[:, 0] for b in cache.buckets])
    torch.testing.assert_close(means.vectors[0], values.mean(0), rtol=1e-3, atol=1e-3)
    cache.close()


def test_verify_finds_a_changed_record(
    bucket_build: Callable[..., Build], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bucket_build(tmp_path, *IMAGE).run("all")
    assert capsys.readouterr().out.count("the image tokens of") == 3
    data = next(stores(tmp_path)[0].rglob("data.mdb"))
    content = bytearray(data.read_bytes())
    cache = bucket_build(tmp_path, *IMAGE).track.open(None)
    bucket = next(b for b in cache.buckets if b.bucket == stores(tmp_path)[0].parent.name)
    record = bucket.image_tokens.tensor([bucket.splits["train"][0].sample_id]).numpy().tobytes()
    cache.close()
    at = content.index(record)
    content[at + 20] ^= 1
    data.write_bytes(content)
    with pytest.raises(UserError, match="image_tokens_.*changed since it was written"):
        bucket_build(tmp_path, *IMAGE).run("verify")
    with pytest.raises(UserError, match="did not pass the stage `verify`"):
        bucket_build(tmp_path, *IMAGE).track.open(None)


def test_other_settings_and_missing_stores_are_refused(bucket_build: Callable[..., Build], built: Path) -> None:
    with pytest.raises(UserError, match="there is no cache at .*image_tokens_.*_8x8"):
        bucket_build(built, *IMAGE, "data.image_encoder.image_size=128", "data.image_encoder.grid=[8,8]").track.open(
            None
        )
    with pytest.raises(UserError, match="no image tokens of mirrored images"):
        bucket_build(built, *IMAGE, "data.flip=true")
    with pytest.raises(UserError, match="no data.image_encoder, so there are no image tokens to make"):
        bucket_build(built).run("image_tokens")
