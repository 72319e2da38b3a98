"""Meta's own files give the tokens of Meta's own forward pass; any other file is refused in one sentence."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import metas
import pytest
import torch
import torch.nn.functional as F
import transformers

from urepa.core.errors import UserError
from urepa.models.teachers.vit_net import IMAGENET, ViTNetwork

WIDTH, HEADS, SIDE = 128, 2, 4  # heads are 64 wide: the file's width or periods say how many


def save(path: Path, weights: metas.State) -> Path:
    torch.save(weights, path)
    return path


def teacher(family: str, model: Path) -> ViTNetwork:
    patch = 16 if family == "dinov3" else 14
    rule = "meta" if family == "dinov2" else None
    return ViTNetwork(family, str(model), patch * SIDE, patch, [SIDE, SIDE], WIDTH, rule)


@pytest.mark.parametrize(
    ("family", "registers"), [("dinov2", 0), ("dinov2_registers", 4), ("dinov3", 4)], ids=["v2", "v2_registers", "v3"]
)
@pytest.mark.parametrize("gated", [False, True], ids=["mlp", "swiglu"])
def test_tokens_are_those_of_metas_forward_pass(family: str, registers: int, gated: bool, tmp_path: Path) -> None:
    kind = family.removesuffix("_registers")
    weights = metas.state(kind, WIDTH, gated, registers, trained=SIDE)
    if kind == "dinov3":
        weights |= {f"local_cls_norm.{x}": torch.randn(WIDTH) for x in ("weight", "bias")}  # of training alone
    ours = teacher(family, save(tmp_path / "meta.pth", weights))
    images = torch.rand(2, 3, ours.image_size, ours.image_size)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in IMAGENET)
    positions = weights.get("pos_embed")
    expected = metas.tokens(weights, (images - mean) / std, HEADS, positions)
    assert torch.allclose(ours.tokens(images).x_BND.double(), F.normalize(expected, dim=-1), atol=5e-5)


@pytest.mark.parametrize("masked", [True, False])
def test_dinov3s_file_is_the_hubs_network(masked: bool, tmp_path: Path) -> None:
    """The same architecture, names and digest as the library's folder; if the periods are not rounded, also the same
    tokens bit for bit. A file without the mask has a bias of the keys."""
    weights = metas.state("dinov3", WIDTH, False, 4)
    weights["rope_embed.periods"] = 100 ** (2 * torch.arange(16).float() / 32)
    if not masked:
        weights = {name: tensor for name, tensor in weights.items() if not name.endswith("bias_mask")}
    ours = teacher("dinov3", save(tmp_path / "meta.pth", weights))
    ours.network.save_pretrained(tmp_path / "hub")
    theirs = teacher("dinov3", tmp_path / "hub")
    assert isinstance(theirs.network, transformers.DINOv3ViTModel)
    assert theirs.network.config.key_bias is not masked
    assert ours.weights_sha256() == theirs.weights_sha256()
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(ours.tokens(images).x_BND, theirs.tokens(images).x_BND)


def without(weights: metas.State, name: str) -> metas.State:
    return {key: value for key, value in weights.items() if key != name}


V2, V3 = metas.state("dinov2", WIDTH, False, trained=SIDE), metas.state("dinov3", WIDTH, False, 4)
V2R = metas.state("dinov2", WIDTH, False, 4, trained=SIDE)


@pytest.mark.parametrize(
    ("family", "weights", "said"),
    [
        ("dinov2", V3, "holds weights of the family dinov3; give teacher.family=dinov3"),
        ("dinov2", V2R, "holds weights of the family dinov2_registers; give teacher.family=dinov2_registers"),
        ("dinov3", V2, "holds weights of the family dinov2; give teacher.family=dinov2"),
        ("clip", V2, "for family=clip give a hub id or a local folder"),
        ("dinov2", {"conv1.weight": torch.zeros(2)}, "is no file of Meta's DINOv2 or DINOv3"),
        ("dinov2", without(V2, "mask_token"), "it lacks mask_token"),
        ("dinov2", without(V2, "blocks.1.ls1.gamma"), "is not dinov2 as Meta publishes it: 1 of its weights"),
        ("dinov2", V2 | {"head.weight": torch.zeros(2)}, "first: head.weight"),
        ("dinov2", V2 | {"norm.bias": torch.zeros(2)}, "first: layernorm.bias"),
        ("dinov2", V2 | {"pos_embed": torch.zeros(1, 12, WIDTH)}, "first: embeddings.position_embeddings"),
        ("dinov2", V2 | {"pos_embed": torch.zeros(1, 17, 200)}, "width of 200 is no multiple of 64"),
        ("dinov3", V3 | {"cls_norm.bias": torch.zeros(2)}, "first: cls_norm.bias"),
        ("dinov3", V3 | {"blocks.0.attn.qkv.bias_mask": torch.ones(3 * WIDTH)}, "masks something else"),
        ("dinov3", without(V3, "storage_tokens"), "first: embeddings.register_tokens"),
        ("dinov2", [torch.zeros(2)], "holds no weights by name"),
        ("dinov2", {"model": V2}, "holds no weights by name"),
    ],
)
def test_another_file_is_refused_in_a_sentence(family: str, weights: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        _ = teacher(family, save(tmp_path / "other.pth", weights)).network


def test_a_file_that_is_not_torchs_is_refused_in_a_sentence(tmp_path: Path) -> None:
    whole = save(tmp_path / "whole.pth", V3).read_bytes()
    pointer = b"version https://git-lfs.github.com/spec/v1\n"
    for content in (b"", b"hello", pointer, whole[:-500], pickle.dumps({"a": print}, protocol=2)):
        (tmp_path / "file.pth").write_bytes(content)
        with pytest.raises(UserError, match="is no whole torch file of weights alone"):
            _ = teacher("dinov3", tmp_path / "file.pth").network
    with pytest.raises(UserError, match="does not exist"):
        _ = teacher("dinov3", tmp_path / "nothing.pth").network
