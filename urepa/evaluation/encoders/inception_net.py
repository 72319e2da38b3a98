"""Inception-v3 (Szegedy et al. 2015, arXiv 1512.00567) in the variant of FID (Heusel et al. 2017, arXiv 1706.08500),
without the auxiliary head. Parameters have the names of the published state dict, which are torchvision's.

FID's variant has 1008 outputs, average pooling that excludes the padding, and max pooling instead of average pooling in
the last block. Shapes: B images, C channels, h/w grid of the block, D pooled features, K classes.

torch-fidelity, pytorch-fid and torchmetrics have this network, but need torchvision, which requires one exact torch.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from urepa.core.errors import UserError
from urepa.core.files import DAMAGED
from urepa.core.hashing import file_sha256
from urepa.core.types import Tokens

PUBLISHED = "pt_inception-2015-12-05-6726825d.pth"
FEATURES = 2048
INCEPTION_SIZE = 299
CLASSES = 1008
EPS = 0.001  # of the BatchNorm layers
COUNTER = ".num_batches_tracked"  # counter of BatchNorm in training; old files lack it

Pool = Callable[[Tensor], Tensor]


def conv_same(wide_in: int, wide_out: int, rows: int = 1, columns: int = 1) -> nn.Sequential:
    """A convolution that keeps the grid, with its batch norm and ReLU."""
    return _unit(nn.Conv2d(wide_in, wide_out, (rows, columns), padding=(rows // 2, columns // 2), bias=False))


def conv_valid(wide_in: int, wide_out: int, stride: int) -> nn.Sequential:
    """A 3x3 convolution without padding, with its batch norm and ReLU."""
    return _unit(nn.Conv2d(wide_in, wide_out, 3, stride, bias=False))


def _unit(conv: nn.Conv2d) -> nn.Sequential:
    norm = nn.BatchNorm2d(conv.out_channels, eps=EPS)
    return nn.Sequential(OrderedDict(conv=conv, bn=norm, relu=nn.ReLU(inplace=True)))


def average_pool(x_BChw: Tensor) -> Tensor:
    """3x3 average pooling with stride 1; padding is not counted."""
    return F.avg_pool2d(x_BChw, 3, stride=1, padding=1, count_include_pad=False)


def max_pool(x_BChw: Tensor) -> Tensor:
    """3x3 max pooling with stride 1."""
    return F.max_pool2d(x_BChw, 3, stride=1, padding=1)


def halving_max_pool(x_BChw: Tensor) -> Tensor:
    """3x3 max pooling with stride 2."""
    return F.max_pool2d(x_BChw, 3, stride=2)


class BlockA(nn.Module):
    """Figure 5 of the paper, with a 5x5 convolution kept."""

    def __init__(self, wide_in: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = conv_same(wide_in, 64)
        self.branch5x5_1 = conv_same(wide_in, 48)
        self.branch5x5_2 = conv_same(48, 64, 5, 5)
        self.branch3x3dbl_1 = conv_same(wide_in, 64)
        self.branch3x3dbl_2 = conv_same(64, 96, 3, 3)
        self.branch3x3dbl_3 = conv_same(96, 96, 3, 3)
        self.branch_pool = conv_same(wide_in, pooled)

    def forward(self, x: Tensor) -> Tensor:
        five = self.branch5x5_2(self.branch5x5_1(x))
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, double, self.branch_pool(average_pool(x))], dim=1)


class BlockB(nn.Module):
    """Halves the grid, as in figure 10: 288 to 768 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3 = conv_valid(288, 384, stride=2)
        self.branch3x3dbl_1 = conv_same(288, 64)
        self.branch3x3dbl_2 = conv_same(64, 96, 3, 3)
        self.branch3x3dbl_3 = conv_valid(96, 96, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, halving_max_pool(x)], dim=1)


class BlockC(nn.Module):
    """Figure 6: 7x7 as 1x7 and 7x1, on 768 channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch1x1 = conv_same(768, 192)
        self.branch7x7_1 = conv_same(768, width)
        self.branch7x7_2 = conv_same(width, width, 1, 7)
        self.branch7x7_3 = conv_same(width, 192, 7, 1)
        self.branch7x7dbl_1 = conv_same(768, width)
        self.branch7x7dbl_2 = conv_same(width, width, 7, 1)
        self.branch7x7dbl_3 = conv_same(width, width, 1, 7)
        self.branch7x7dbl_4 = conv_same(width, width, 7, 1)
        self.branch7x7dbl_5 = conv_same(width, 192, 1, 7)
        self.branch_pool = conv_same(768, 192)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), seven, double, self.branch_pool(average_pool(x))], dim=1)


class BlockD(nn.Module):
    """Halves the grid again: 768 to 1280 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3_1 = conv_same(768, 192)
        self.branch3x3_2 = conv_valid(192, 320, stride=2)
        self.branch7x7x3_1 = conv_same(768, 192)
        self.branch7x7x3_2 = conv_same(192, 192, 1, 7)
        self.branch7x7x3_3 = conv_same(192, 192, 7, 1)
        self.branch7x7x3_4 = conv_valid(192, 192, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_2(self.branch3x3_1(x))
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([three, seven, halving_max_pool(x)], dim=1)


class BlockE(nn.Module):
    """Figure 7: 1x3 and 3x1 side by side, to 2048 channels."""

    def __init__(self, wide_in: int, pool: Pool) -> None:
        super().__init__()
        self.pool = pool
        self.branch1x1 = conv_same(wide_in, 320)
        self.branch3x3_1 = conv_same(wide_in, 384)
        self.branch3x3_2a = conv_same(384, 384, 1, 3)
        self.branch3x3_2b = conv_same(384, 384, 3, 1)
        self.branch3x3dbl_1 = conv_same(wide_in, 448)
        self.branch3x3dbl_2 = conv_same(448, 384, 3, 3)
        self.branch3x3dbl_3a = conv_same(384, 384, 1, 3)
        self.branch3x3dbl_3b = conv_same(384, 384, 3, 1)
        self.branch_pool = conv_same(wide_in, 192)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        sides = [self.branch3x3_2a(three), self.branch3x3_2b(three)]
        sides += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)]
        return torch.cat([self.branch1x1(x), *sides, self.branch_pool(self.pool(x))], dim=1)


class InceptionV3(nn.Module):
    """Images in [-1,1], 299x299 in the original and 75x75 at least, to pooled features."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = conv_valid(3, 32, stride=2)
        self.Conv2d_2a_3x3 = conv_valid(32, 32, stride=1)
        self.Conv2d_2b_3x3 = conv_same(32, 64, 3, 3)
        self.Conv2d_3b_1x1 = conv_same(64, 80)
        self.Conv2d_4a_3x3 = conv_valid(80, 192, stride=1)
        self.Mixed_5b = BlockA(192, pooled=32)
        self.Mixed_5c = BlockA(256, pooled=64)
        self.Mixed_5d = BlockA(288, pooled=64)
        self.Mixed_6a = BlockB()
        self.Mixed_6b = BlockC(128)
        self.Mixed_6c = BlockC(160)
        self.Mixed_6d = BlockC(160)
        self.Mixed_6e = BlockC(192)
        self.Mixed_7a = BlockD()
        self.Mixed_7b = BlockE(1280, average_pool)
        self.Mixed_7c = BlockE(2048, max_pool)
        self.fc = nn.Linear(FEATURES, CLASSES)

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Features [B,D], D = 2048."""
        x = halving_max_pool(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(images_B3HW))))
        x = halving_max_pool(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        return self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x))).mean((2, 3))

    def probabilities(self, features_BD: Tensor) -> Tensor:
        """Class probabilities [B,K], K = 1008. The Inception Score uses them without the bias of the last layer."""
        return (features_BD @ self.fc.weight.T).softmax(1)


def read(file: Path) -> InceptionV3:
    """The network with the weights of a .safetensors file or a torch file of tensors by name, in fp32 on the CPU.

    Raises UserError if the file contains anything else, or weights of another network.
    """
    found = {name: value for name, value in _tensors(file).items() if not name.startswith("AuxLogits.")}
    with torch.device("meta"):  # initial values would be overwritten
        network = InceptionV3()
    own = network.state_dict()
    found = {name: torch.zeros_like(own[name], device="cpu") for name in own if name.endswith(COUNTER)} | found
    odd = sorted(own.keys() ^ found.keys()) + [k for k in own if k in found and own[k].shape != found[k].shape]
    if odd:
        raise UserError(
            f"{file} is not FID's Inception-v3: {len(odd)} of its weights differ by name or shape ({odd[0]}); give "
            f"{PUBLISHED}"
        )
    network.to_empty(device="cpu").load_state_dict(found)
    return network.eval().requires_grad_(False)


def _tensors(file: Path) -> dict[str, Tensor]:
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        stored = torch.load(file, map_location="cpu", weights_only=True)
    except (UnpicklingError, *DAMAGED, SafetensorError) as error:
        raise UserError(f"{file} cannot be read as weights alone; give {PUBLISHED} or its .safetensors") from error
    if not isinstance(stored, dict) or not all(isinstance(value, Tensor) for value in stored.values()):
        raise UserError(f"{file} is not a state dict of tensors by name; give {PUBLISHED}")
    return stored


class InceptionNetwork:
    """FID's Inception-v3 with weights from a local file.

    With the published weights, the Fréchet distance of its features is FID as pytorch-fid computes it, if the usual
    numbers of images are used and the real images are photographs. On a latent track they are not photographs but the
    VAE's reconstructions (`urepa.evaluation.measures.image_distances_math`), whereas published FIDs of such models use
    the photographs. Images of any size are rounded to multiples of 1/255 and resized bilinearly to 299x299 (corners not
    aligned, no antialiasing). The original resizes by the rule of TensorFlow 1, which uses other sample positions, so
    its FID differs slightly.
    """

    def __init__(self, weights: str) -> None:
        self.weights = weights

    def manifest(self) -> dict[str, Any]:
        """The properties on which its features depend, without its weights."""
        return {"model": "inception", "features": FEATURES, "image_size": INCEPTION_SIZE, "resize": "bilinear"}

    def weights_sha256(self) -> str:
        """SHA-256 of the weights file."""
        self._require()
        return file_sha256(Path(self.weights))

    @torch.inference_mode()
    def tokens(self, images_B3HW: Tensor) -> Tokens:
        """Maps RGB in [0,1] to one token, which is the pool features divided by √2048."""
        return Tokens(self._features(images_B3HW)[:, None] / FEATURES**0.5, (1, 1))

    @torch.inference_mode()
    def probabilities(self, images_B3HW: Tensor) -> Tensor:
        """Maps RGB in [0,1] to class probabilities [B,1008], without the last layer's bias, as in the original."""
        return self._network.probabilities(self._features(images_B3HW))

    def _features(self, images_B3HW: Tensor) -> Tensor:
        levels_B3HW = (images_B3HW.float() * 255).round() / 255
        size = (INCEPTION_SIZE, INCEPTION_SIZE)
        resized_B3SS = F.interpolate(levels_B3HW, size, mode="bilinear", align_corners=False)
        return self._network.to(images_B3HW.device)(resized_B3SS * 2 - 1)

    @cached_property
    def _network(self) -> InceptionV3:
        self._require()
        return read(Path(self.weights))

    def _require(self) -> None:
        if not Path(self.weights).is_file():
            raise UserError(
                f"there is no {self.weights}: FID and the Inception Score need {PUBLISHED} as a local file; give its "
                "path, evaluation.inception.encoders.inception.weights=FILE, or leave this evaluation out"
            )
