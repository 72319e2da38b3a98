"""A linear segmentation probe on frozen spatial tokens, from a folder of images and masks.

Input is either FOLDER/images/NAME.jpg (or .png and so on) and FOLDER/masks/NAME.png, of which a fifth of the names,
drawn from the names alone, is held out; or FOLDER/{train,val}/{images,masks}/... with a given split. A mask is a
palette or grey image of class ids with its image's size; the id 255 is ignored. Both are cropped to the central square.

Shapes: B images, N tokens of a grid h x w, D features, K classes, HW of a mask.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from urepa.core import random_draws
from urepa.core.errors import UserError
from urepa.core.types import Tokens
from urepa.data.lists.samples import Sample
from urepa.data.sources.decoding import UNREADABLE, large_images_as_value_errors, read, square
from urepa.data.sources.image_folder import FORMER, images_in
from urepa.evaluation.context import Context
from urepa.evaluation.features import CHUNK, chunks, subset
from urepa.evaluation.image_counts import cache_counts
from urepa.evaluation.measures.dense import Dense
from urepa.method.training_step import AlignedModel

IGNORED = 255
HELD_OUT = 0.2  # share of the images, if the folder has no given split
ORIENTATION = 0x0112  # EXIF
STRENGTH = 0.1  # sklearn's C, on standardised features
Walk = Callable[[list[Sample]], Iterator[tuple[list[Sample], Tokens]]]  # yields the tokens of images, chunk by chunk


def segment_linearly(asked: Dense, context: Context) -> dict[str, float]:
    """mIoU of a linear probe on each kind of tokens."""
    asked.check_images(cache_counts(context.cache))
    assert asked.folder is not None, "it was checked"
    train, test = read_folder(Path(asked.folder))
    parts = subset(train, asked.train_images), subset(test, asked.test_images)
    pictures = Pictures(context)
    seen = replace(context, cache=pictures)  # type: ignore[arg-type]  # a walk uses these three methods of a cache
    walks = {"tap": _tap_walk(asked, seen, context.model)}
    if context.head_at(asked.tap) is not None:
        walks["head"] = _head_walk(asked, seen)
    if asked.teacher is not None:
        walks["teacher"] = _teacher_walk(asked.teacher.build(), pictures)
    metrics = {f"final/dense/{what}": probe_iou(walk, *parts) for what, walk in walks.items()}
    for floor, build in context.floors.items():  # one additional model at a time
        metrics[f"final/dense/{floor}_tap"] = probe_iou(_tap_walk(asked, seen, build()), *parts)
    return metrics


def _tap_walk(asked: Dense, context: Context, model: AlignedModel) -> Walk:
    walk = ((asked.tap,), asked.timestep, model)
    return lambda samples: ((c.samples, c.taps[asked.tap]) for c in chunks(context, samples, *walk))


def _head_walk(asked: Dense, context: Context) -> Walk:
    walk = ((asked.tap,), asked.timestep)
    return lambda samples: ((c.samples, c.heads[asked.tap]) for c in chunks(context, samples, *walk))


def _teacher_walk(encoder: Any, pictures: "Pictures") -> Walk:
    def walk(samples: list[Sample]) -> Iterator[tuple[list[Sample], Tokens]]:
        for start in range(0, len(samples), CHUNK):
            part = samples[start : start + CHUNK]
            with torch.autocast(pictures.context.device.type, enabled=False):
                yield part, encoder.tokens(pictures.rgb(part)).float()

    return walk


class Pictures:
    """The images of a folder, in place of a track's cache: central squares of the track's size."""

    def __init__(self, context: Context) -> None:
        self.context, self.conditions, self.grids = context, context.cache.conditions, context.cache.grids
        # by path, as splits may share names. A VAE costs more than the backbone's taps, and there are several passes
        self._x0: dict[str, Tensor] = {}

    def images(self, samples: list[Sample]) -> Tensor:
        """Images [B,C,S,S] in [0,1], on the run's device."""
        channels, size, _ = self.context.track.image_shape
        mode = "L" if channels == 1 else "RGB"
        pixels = [np.asarray(square(_read(s.path), size).convert(mode)) for s in samples]
        images = torch.from_numpy(np.stack(pixels)).view(len(samples), size, size, channels)
        return images.permute(0, 3, 1, 2).float().to(self.context.device) / 255

    def rgb(self, samples: list[Sample]) -> Tensor:
        """RGB [B,3,S,S], as teachers expect."""
        return self.images(samples).expand(-1, 3, -1, -1)

    def x0(self, samples: list[Sample]) -> Tensor:
        """Latents [B,C,H,W] on the CPU, as from a cache."""
        new = [s for s in samples if s.path not in self._x0]
        if new:
            with torch.no_grad(), torch.autocast(self.context.device.type, enabled=False):
                made = self.context.track.to_x0(self.images(new)).cpu()
            self._x0 |= {s.path: x0 for s, x0 in zip(new, made, strict=True)}
        return torch.stack([self._x0[s.path] for s in samples])


def probe_iou(walk: Walk, train: list[Sample], test: list[Sample]) -> float:
    """mIoU on `test` of a probe that is fitted to `train`."""
    probe = Probe.fit(walk, train)
    counts_KK = np.zeros((256, 256), dtype=np.int64)
    for samples, tokens in walk(test):
        for sample, map_Khw in zip(samples, probe.logits(tokens), strict=True):
            truth_HW = read_mask(sample)
            enlarged = F.interpolate(map_Khw[None], truth_HW.shape, mode="bilinear", align_corners=False)[0]
            found_HW = probe.ids_K[enlarged.argmax(0).numpy()]
            counted = truth_HW != IGNORED
            pairs = truth_HW[counted].astype(np.int64) * 256 + found_HW[counted]
            counts_KK += np.bincount(pairs, minlength=256**2).reshape(256, 256)
    return mean_iou(counts_KK)


def mean_iou(counts_KK: np.ndarray) -> float:
    """The mean intersection over union of the classes that occur or were predicted. The counts are of pixels by true
    class (row) and predicted class (column), over all images."""
    both = np.diag(counts_KK)
    either = counts_KK.sum(0) + counts_KK.sum(1) - both
    if not either.any():
        raise UserError(f"the held-out masks contain only {IGNORED}, which is ignored")
    return float((both[either > 0] / either[either > 0]).mean())


@dataclass
class Probe:
    """Logistic regression of a token's class. A token that covers several classes is weighted by their shares."""

    ids_K: np.ndarray  # class ids as in the masks
    scaler: Any
    weight_KD: np.ndarray
    bias_K: np.ndarray

    @staticmethod
    def fit(walk: Walk, train: list[Sample]) -> "Probe":
        """Fits a probe to the tokens of these images."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.preprocessing import StandardScaler

        rows, shares = [], []
        for samples, tokens in walk(train):
            rows.append(tokens.x_BND.float().flatten(0, 1).cpu().numpy())
            shares += [_shares(read_mask(s), tokens.grid) for s in samples]
        x_nD, share_nK = np.concatenate(rows), np.concatenate(shares)
        row, id_ = np.nonzero(share_nK)
        if len(np.unique(id_)) < 2:
            raise UserError("the training masks have fewer than two classes: a probe needs two")
        scaler = StandardScaler().fit(x_nD)
        model = LogisticRegression(C=STRENGTH, max_iter=1000)
        model.fit(scaler.transform(x_nD)[row], id_, sample_weight=share_nK[row, id_])
        weight, bias = model.coef_, model.intercept_
        if len(weight) == 1:  # for two classes, sklearn has only the second one's logit
            weight, bias = np.concatenate([0 * weight, weight]), np.concatenate([0 * bias, bias])
        return Probe(model.classes_, scaler, weight, bias)

    def logits(self, tokens: Tokens) -> Tensor:
        """Maps [B,K,h,w] on the CPU."""
        x_BND = tokens.x_BND.float().cpu()
        scaled_nD = self.scaler.transform(x_BND.flatten(0, 1).numpy())
        logits_nK = torch.from_numpy(scaled_nD @ self.weight_KD.T + self.bias_K)
        return Tokens(logits_nK.view(*x_BND.shape[:2], -1), tokens.grid).to_map()


def _shares(mask_HW: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """The share [N,256] of each token's cell that each class covers; ignored pixels have no class."""
    present = [int(k) for k in np.unique(mask_HW) if k != IGNORED]
    shares_N256 = np.zeros((grid[0] * grid[1], 256), dtype=np.float32)
    for k in present:
        covered = torch.from_numpy((mask_HW == k).astype(np.float32))[None]
        shares_N256[:, k] = F.adaptive_avg_pool2d(covered, grid).flatten().numpy()
    return shares_N256


# --- the folder ---------------------------------------------------------------------------------------------


def read_folder(folder: Path) -> tuple[list[Sample], list[Sample]]:
    """Training and held-out images, by name. Raises UserError with what is missing."""
    if (folder / "train").is_dir():
        train, test = _pairs(folder / "train"), _pairs(folder / "val")
    else:
        every = _pairs(folder)
        test = [s for s in every if random_draws.unit_interval("dense", s.sample_id) < HELD_OUT]
        train = [s for s in every if random_draws.unit_interval("dense", s.sample_id) >= HELD_OUT]
    if not train or not test:
        raise UserError(f"{folder} has {len(train)} training and {len(test)} held-out images; give more of them")
    return train, test


def _pairs(folder: Path) -> list[Sample]:
    images, masks = folder / "images", folder / "masks"
    if not images.is_dir() or not masks.is_dir():
        raise UserError(
            f"{folder} has no images/ and masks/; the two lie beside each other, or both in train/ and val/"
        )
    files = [images / name for name in images_in(images, FORMER)]
    without = [file.name for file in files if not (masks / f"{file.stem}.png").is_file()]
    if without:
        raise UserError(f"{masks} lacks the masks of {len(without)} images (first: {without[0]})")
    twice = sorted(name for name, n in Counter(file.stem for file in files).items() if n > 1)
    if twice:
        raise UserError(f"{images} has two images called {twice[0]}; rename one of them and its mask")
    return [Sample(file.stem, 0, str(file), folder.name) for file in files]


def read_mask(sample: Sample) -> np.ndarray:
    """Class ids of the central square, uint8 [H,W]."""
    image = Path(sample.path)
    file = image.parent.parent / "masks" / f"{image.stem}.png"
    mask = _open_picture(str(file))
    if mask.mode not in ("P", "L"):
        raise UserError(
            f"{file} is not a mask: it has the mode {mask.mode}; class ids are a palette or an 8-bit grey image"
        )
    width, height = _size(sample.path)
    if mask.size != (width, height):
        raise UserError(
            f"{file} is {mask.size[0]}x{mask.size[1]} pixels, its image {width}x{height}: make their sizes equal"
        )
    side = min(mask.size)
    left, top = ((n - side) // 2 for n in mask.size)
    return np.asarray(mask)[top : top + side, left : left + side]


@contextmanager
def _read_errors_as_user_errors(path: str) -> Iterator[None]:
    """Within the block, errors from an unreadable image become a UserError."""
    try:
        yield
    except UNREADABLE as error:
        raise UserError(f"{path} cannot be read ({error}); repair or remove it") from error


def _read(path: str) -> np.ndarray:
    with _read_errors_as_user_errors(path):
        return read(path)


def _open_picture(path: str) -> Any:
    from PIL import Image

    with _read_errors_as_user_errors(path), large_images_as_value_errors():
        image = Image.open(path)
        image.load()
    return image


def _size(path: str) -> tuple[int, int]:
    """Width and height of an image as displayed."""
    from PIL import Image

    with Image.open(path) as image:
        lies_on_its_side = image.getexif().get(ORIENTATION, 1) >= 5
        return (image.height, image.width) if lies_on_its_side else image.size
