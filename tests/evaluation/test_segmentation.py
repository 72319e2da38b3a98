"""The segmentation probe, compared with scikit-learn on a problem with a known answer; and invalid folders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from contexts import Built
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import jaccard_score
from sklearn.preprocessing import StandardScaler

from urepa.core import random_draws
from urepa.core.conditions import Condition
from urepa.core.errors import UserError
from urepa.core.types import Tokens
from urepa.evaluation.context import Context
from urepa.evaluation.measures.dense import Dense
from urepa.evaluation.measures.dense_math import Pictures, _pairs, _shares, mean_iou, read_folder, read_mask
from urepa.training.assembly import build_part

DARK, LIGHT = 3, 7  # class ids


class Brightness:
    """An encoder whose tokens are the brightness of each cell of a 4x4 grid."""

    grid = (4, 4)

    def tokens(self, images_B3HW: torch.Tensor) -> Tokens:
        return Tokens(F.adaptive_avg_pool2d(images_B3HW, self.grid).flatten(2).transpose(1, 2), self.grid)


@pytest.fixture
def seen(context: Context, compose: Callable[..., Any], small_run: list[str]) -> Context:
    """The small model with its track: grey images of 16x16."""
    return replace(context, track=build_part(compose(*small_run)["data"]))


def write(folder: Path, name: str, image_HW: np.ndarray, mask_HW: np.ndarray, palette: bool = False) -> None:
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    Image.fromarray(image_HW.astype(np.uint8)).convert("RGB").save(folder / "images" / f"{name}.png")
    mask = Image.fromarray(mask_HW.astype(np.uint8), "P" if palette else "L")
    if palette:
        mask.putpalette([200, 30, 90] * 256)  # colours that say nothing
    mask.save(folder / "masks" / f"{name}.png")


@pytest.fixture
def halves(tmp_path: Path) -> Path:
    """40 pictures of 48x32 with a light left or right, upper or lower half and some noise."""
    rng = np.random.default_rng(0)
    for i in range(40):
        mask = np.full((32, 48), DARK)
        mask[[np.s_[:, :24], np.s_[:, 24:], np.s_[:16], np.s_[16:]][i % 4]] = LIGHT
        image = np.where(mask == LIGHT, 200, 60) + rng.integers(-40, 40, mask.shape)
        write(tmp_path / "halves", f"picture_{i:02d}", image, mask, palette=i % 2 == 0)
    return tmp_path / "halves"


def probe(folder: Path | None, **changes: Any) -> Dense:
    settings: dict[str, Any] = {"tap": "mid", "timestep": 100, "train_images": 100, "test_images": 100, "teacher": None}
    return Dense(folder=None if folder is None else str(folder), **(settings | changes))


@pytest.mark.slow
def test_the_probe_finds_an_answer_that_the_tokens_contain(halves: Path, seen: Context) -> None:
    found = probe(halves, teacher=Built(Brightness()))(seen)
    assert found.keys() == {f"final/dense/{what}" for what in ("tap", "head", "untrained_tap", "teacher")}
    assert found["final/dense/teacher"] > 0.99  # halves end where tokens do: enlarged logits cross there
    assert found["final/dense/tap"] == found["final/dense/untrained_tap"] < 0.95, "nothing has trained here"


@pytest.mark.slow
def test_the_probe_of_the_tap_is_sklearns(halves: Path, seen: Context) -> None:
    for file in sorted((halves / "masks").iterdir())[::3]:  # some edges that count for nothing
        mask = np.asarray(Image.open(file)).copy()
        mask[:5] = 255
        Image.fromarray(mask).save(file)
    found = probe(halves)(seen)
    train, test = read_folder(halves)

    def square(array: Any) -> Any:
        return array[:, 8:40]

    def tokens_and_masks(samples: list[Any]) -> tuple[torch.Tensor, list[np.ndarray]]:
        images, noise, masks = [], [], []
        for s in samples:
            grey = square(np.asarray(Image.open(s.path).convert("L")))
            small = Image.fromarray(grey).resize((16, 16), Image.Resampling.BICUBIC)
            images.append(torch.from_numpy(np.asarray(small) / 255).float()[None])
            noise.append(
                random_draws.normal(
                    (4, 8, 8), random_draws.generator(random_draws.digest64("probe", s.sample_id), "noise")
                )
            )
            masks.append(square(np.asarray(Image.open(halves / "masks" / f"{s.sample_id}.png"))))
        t_B = torch.full((len(samples),), 100)
        x_t = seen.objective.corrupt(seen.track.to_x0(torch.stack(images)), torch.stack(noise), t_B)
        null = Condition.of_classes(torch.tensor([s.class_id for s in samples])).null()
        backbone: Any = seen.model.backbone
        with torch.no_grad():
            return backbone(x_t, t_B, null, ("mid",)).features["mid"].to_map(), masks

    map_BDhw, masks = tokens_and_masks(train)
    side = map_BDhw.shape[-1]
    rows, labels, weights = [], [], []
    for features_Dhw, mask in zip(map_BDhw.numpy(), masks, strict=True):
        cell = 32 // side
        for y in range(side):
            for x in range(side):
                part = mask[y * cell : (y + 1) * cell, x * cell : (x + 1) * cell]
                for class_id in (DARK, LIGHT):
                    if (part == class_id).any():
                        rows.append(features_Dhw[:, y, x])
                        labels.append(class_id)
                        weights.append((part == class_id).mean())
    every = map_BDhw.permute(0, 2, 3, 1).flatten(0, 2).numpy()
    scaler = StandardScaler().fit(every)
    model = LogisticRegression(C=0.1, max_iter=1000).fit(scaler.transform(rows), labels, sample_weight=weights)
    map_BDhw, masks = tokens_and_masks(test)
    truth, said = [], []
    for features_Dhw, mask in zip(map_BDhw, masks, strict=True):
        logit = model.decision_function(scaler.transform(features_Dhw.flatten(1).T.numpy())).reshape(1, 1, side, side)
        large = F.interpolate(torch.from_numpy(logit), (32, 32), mode="bilinear", align_corners=False)[0, 0].numpy()
        truth.append(mask[mask != 255])
        said.append(np.where(large > 0, LIGHT, DARK)[mask != 255])
    expected = jaccard_score(np.concatenate(truth), np.concatenate(said), average="macro")
    assert found["final/dense/tap"] == pytest.approx(expected, abs=2e-3)  # lbfgs stops a little elsewhere
    assert 0.3 < expected < 0.95


def test_the_mean_iou_is_sklearns() -> None:
    rng = np.random.default_rng(0)
    truth, said = rng.choice([0, 3, 7], 500), rng.choice([0, 3, 9], 500)
    counts = np.bincount(truth * 256 + said, minlength=256**2).reshape(256, 256)
    assert mean_iou(counts) == pytest.approx(jaccard_score(truth, said, average="macro", zero_division=0))
    with pytest.raises(UserError, match="the held-out masks contain only 255"):
        mean_iou(np.zeros((256, 256), dtype=np.int64))


@pytest.mark.slow
def test_more_classes_than_two(tmp_path: Path, seen: Context) -> None:
    rng = np.random.default_rng(0)
    for i in range(40):
        mask = np.repeat(np.repeat(rng.choice([0, 1, 2], (2, 2)), 16, 0), 16, 1)
        write(tmp_path / "three", f"{i}", mask * 100 + 20, mask)
    assert probe(tmp_path / "three", teacher=Built(Brightness()))(seen)["final/dense/teacher"] > 0.7


def test_a_token_is_weighted_by_the_pixels_that_it_covers() -> None:
    mask = np.array([[1, 1, 2, 255], [1, 2, 2, 255]])
    shares = _shares(mask, (1, 2))
    assert shares.shape == (2, 256)
    assert {(i, k): shares[i, k] for i, k in zip(*np.nonzero(shares), strict=True)} == {
        (0, 1): 0.75,
        (0, 2): 0.25,
        (1, 2): 0.5,
    }


def test_a_mask_is_cut_as_its_picture_and_no_more(tmp_path: Path) -> None:
    mask = np.arange(20 * 30).reshape(20, 30) % 200
    write(tmp_path / "a", "one", mask, mask, palette=True)
    write(tmp_path / "a", "two", mask.T, mask.T)
    one, two = _pairs(tmp_path / "a")
    np.testing.assert_array_equal(read_mask(one), mask[:, 5:25])
    np.testing.assert_array_equal(read_mask(two), mask.T[5:25])


def test_the_split_depends_on_names_alone_or_on_sub_folders(halves: Path, tmp_path: Path) -> None:
    train, test = read_folder(halves)
    names = {s.sample_id for s in test}
    assert 3 <= len(names) <= 15
    gone = sorted(names)[0]
    (halves / "images" / f"{gone}.png").unlink()
    assert {s.sample_id for s in read_folder(halves)[1]} == names - {gone}
    divided = tmp_path / "divided"
    grey = np.full((8, 8), 9)
    write(divided / "train", "a", grey, grey)
    write(divided / "val", "a", grey, grey)
    train, test = read_folder(divided)
    assert [Path(s.path).parts[-3] for s in (*train, *test)] == ["train", "val"]


@pytest.mark.slow
def test_pictures_of_one_name_in_both_splits_are_two(tmp_path: Path, seen: Context) -> None:
    dark, light = np.full((16, 16), 30), np.full((16, 16), 200)
    write(tmp_path / "train", "a", dark, dark % 5)
    write(tmp_path / "val", "a", light, dark % 5)
    both = [sample for part in read_folder(tmp_path) for sample in part]
    pictures = Pictures(seen)
    found = torch.cat([pictures.x0([sample]) for sample in both])
    grey = torch.tensor([30, 200]).view(2, 1, 1, 1).expand(2, 1, 16, 16) / 255
    assert torch.equal(found, seen.track.to_x0(grey))
    assert {sample.sample_id for sample in both} == {"a"}, "their noise stays what it is"


@pytest.mark.slow
def test_invalid_folders_are_reported(halves: Path, tmp_path: Path, seen: Context) -> None:
    def said(folder: Path | None) -> str:
        with pytest.raises(UserError) as raised:
            probe(folder)(seen)
        return str(raised.value)

    assert "give evaluation.dense.folder=FOLDER" in said(None)
    assert "has no images/ and masks/" in said(tmp_path)
    grey = np.full((8, 8), 9)
    write(tmp_path / "few", "a", grey, grey)
    assert "training and" in said(tmp_path / "few")
    for i in range(30):
        write(tmp_path / "one_class", f"{i}", grey, grey)
    assert "fewer than two classes" in said(tmp_path / "one_class")
    mask = halves / "masks" / "picture_03.png"
    Image.open(mask).convert("RGB").save(mask)
    assert "picture_03.png is not a mask: it has the mode RGB" in said(halves)
    Image.fromarray(np.zeros((9, 9), dtype=np.uint8)).save(mask)
    assert "picture_03.png is 9x9 pixels, its image 48x32" in said(halves)
    mask.write_bytes(b"no image")
    assert "picture_03.png cannot be read" in said(halves)
    mask.unlink()
    assert "lacks the masks of 1 images (first: picture_03.png)" in said(halves)
