"""The attention of teachers' blocks, compared with that which the transformers library returns."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from urepa.core.errors import UserError
from urepa.models.teachers.vit_net import FAMILIES, ViTNetwork

REGISTERS = {"dinov2_registers": 4, "dinov3": 4}
OTHERS = [name for name, own in FAMILIES.items() if own.model_class and name != "dinov2"]


def written(family: str, folder: Path) -> ViTNetwork:
    """A small network of random weights with 4x4 patches of 14 pixels."""
    torch.manual_seed(0)
    network_class = getattr(transformers, FAMILIES[family].model_class)
    more = {"num_register_tokens": REGISTERS[family]} if family in REGISTERS else {}
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    network_class(network_class.config_class(**sizes, patch_size=14, image_size=56, **more)).save_pretrained(folder)
    return ViTNetwork(family, str(folder), 56, 14, [4, 4], 32, "meta" if family == "dinov2" else None)


def by_library(family: str, folder: Path, images: Tensor) -> tuple[Tensor, ...]:
    """The attention maps [B,A,N,N] of all blocks, with class and register tokens."""
    network_class = getattr(transformers, FAMILIES[family].model_class)
    network = network_class.from_pretrained(folder, attn_implementation="eager").eval()
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in FAMILIES[family].normalisation)
    pixels = (F.interpolate(images, size=(56, 56), mode="bicubic", antialias=True).clamp(0, 1) - mean) / std
    more = {}
    if family == "mae":
        network.config.mask_ratio = 0.0
        more = {"noise": torch.arange(16).float().expand(len(images), -1)}
    with torch.no_grad():
        found: tuple[Tensor, ...] = network(pixels, output_attentions=True, **more).attentions
    return found


@pytest.mark.parametrize("family", ["dinov2", *(pytest.param(f, marks=pytest.mark.slow) for f in OTHERS)])
def test_attention_is_the_librarys_among_patches_and_tokens_are_the_same(family: str, tmp_path: Path) -> None:
    """The rows and columns of the other tokens are removed, and what is left is normalised again."""
    teacher, images = written(family, tmp_path), torch.rand(2, 3, 40, 40)
    before = teacher.tokens(images).x_BND
    tokens, attention = teacher.tokens_and_attention(images, (2, 0))
    assert torch.equal(tokens.x_BND, before)
    assert list(attention) == [2, 0]
    assert teacher.attention_grid() == (4, 4)
    expected = by_library(family, tmp_path, images)
    for block, own in attention.items():
        shares = torch.softmax(own.scale * own.q_BANE @ own.k_BANE.mT, dim=-1)
        among = expected[block][:, :, -16:, -16:]
        torch.testing.assert_close(shares, among / among.sum(-1, keepdim=True), rtol=0, atol=1e-6)
    assert torch.equal(teacher.tokens(images).x_BND, before)


def test_a_block_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has 3 blocks, counted from 0, and none with the number 3"):
        written("dinov2", tmp_path).tokens_and_attention(torch.rand(1, 3, 40, 40), (0, 3))


def test_threads_do_not_see_each_others_attention(tmp_path: Path) -> None:
    """As the reader's threads run one teacher."""
    teacher, images = written("dinov2", tmp_path), torch.rand(4, 3, 40, 40)
    alone = [teacher.tokens_and_attention(image[None], (1,))[1][1].q_BANE for image in images]
    found: dict[int, Tensor] = {}

    def run(i: int) -> None:
        for _ in range(5):
            found[i] = teacher.tokens_and_attention(images[i : i + 1], (1,))[1][1].q_BANE

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[i], alone[i]) for i in range(4))
