"""Whether latents and tokens show the same field of view: each known fault is tested."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from photos import WIDTH, write_dinov2, write_photos

from urepa.core.errors import UserError
from urepa.data.lists.samples import Sample
from urepa.data.stages import verify
from urepa.data.stores.lmdb_store import write_store
from urepa.data.stores.record_reading import Store


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """64x64 "latents" (the photographs' colours at an eighth of 512 px) and tokens at 37x37."""
    from urepa.data.sources.decoding import square
    from urepa.data.sources.image_sources import SOURCES
    from urepa.models.teachers.vit_net import ViTNetwork

    folder = tmp_path_factory.mktemp("views")
    write_photos(folder / "photos", 96, 2)
    rows = [row for row in SOURCES["folder"](str(folder / "photos")) if row.split == "train"]
    images = torch.stack([torch.from_numpy(np.array(square(row.load(), 512))) for row in rows])
    images = images.permute(0, 3, 1, 2).float() / 255
    write_dinov2(folder / "dino", side=37)
    teacher = ViTNetwork("dinov2", str(folder / "dino"), 518, 14, [37, 37], WIDTH, "meta")
    fine = torch.cat([teacher.tokens(chunk).to_map() for chunk in images.split(16)])
    return {"x0": F.adaptive_avg_pool2d(images, 64), "tokens": fine, "images": images, "teacher": teacher}


def check(folder: Path, x0: torch.Tensor, map_SDhw: torch.Tensor) -> list[verify.Finding]:
    ids = [f"s{i:03d}" for i in range(len(x0))]
    tokens = F.normalize(F.adaptive_avg_pool2d(map_SDhw, 16).flatten(2).mT, dim=-1)
    write_store(folder / "l", zip(ids, x0.numpy(), strict=True), {})
    write_store(folder / "t", zip(ids, tokens.numpy(), strict=True), {})
    samples = [Sample(i, 0, "", "train") for i in ids]
    return verify.spatial_check(Store(folder / "l"), Store(folder / "t"), samples, (16, 16))


@pytest.mark.slow
def test_caches_of_the_same_view_pass(views: dict[str, Any], tmp_path: Path) -> None:
    findings = check(tmp_path, views["x0"], views["tokens"])
    assert findings[0].name == "as stored"
    r2 = {f.name: f.r2 for f in findings}
    assert all(r2["as stored"] > 1.5 * r2[other] for other in ("mirrored", "transposed", "of another sample"))


@pytest.mark.fast(2)
@pytest.mark.parametrize("fault", ["sheared", "mirrored", "shifted", "other samples"])
def test_caches_of_another_view_are_caught(views: dict[str, Any], tmp_path: Path, fault: str) -> None:
    x0, tokens = views["x0"], views["tokens"]
    if fault == "sheared":  # the description's fault: the first 1,296 of 1,369 tokens viewed as 36x36
        tokens, expected = tokens.flatten(2)[:, :, :1296].unflatten(2, (36, 36)), "sheared as 36x36"
    elif fault == "mirrored":
        teacher = views["teacher"]
        tokens = torch.cat([teacher.tokens(chunk.flip(-1)).to_map() for chunk in views["images"].split(16)])
        expected = "mirrored"
    elif fault == "shifted":  # a crop that lies 32 pixels further right
        x0, expected = torch.roll(x0, 4, -1), "shifted"
    else:
        tokens, expected = tokens.roll(-1, 0), "of another sample|as stored"
    with pytest.raises(UserError, match=f"do not see the same field of view.*({expected})"):
        check(tmp_path, x0, tokens)


@pytest.mark.slow
def test_too_few_samples_for_a_decision_are_reported(tmp_path: Path) -> None:
    """A regression on wide tokens overfits: little or nothing is explained, and no other crop is reported."""
    rng = torch.Generator().manual_seed(0)
    x0, tokens = (torch.randn(40, width, 16, 16, generator=rng) for width in (3, 512))
    with pytest.raises(UserError, match="40 training samples are too few to tell, at least 256 are needed"):
        check(tmp_path, x0, tokens)


@pytest.mark.parametrize(("moved", "words"), [(0.4, "are too few to tell"), (2.0, "do not see the same field of view")])
def test_with_few_samples_only_clear_faults_are_reported(tmp_path: Path, moved: float, words: str) -> None:
    """Tokens that show a little of their own crop, and a little or much more of a neighbouring one."""
    rng = torch.Generator().manual_seed(0)
    x0, tokens = (torch.randn(40, width, 16, 16, generator=rng) for width in (3, 64))
    tokens[:, :3] += 0.35 * x0 + moved * torch.roll(x0, 1, -1)
    with pytest.raises(UserError, match=words):
        check(tmp_path, x0, tokens)
