"""Published checkpoints of SiT and REPA: what loads, the direction of their time, and what is refused."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_sit import SHAPE, SMALL, small
from torch import Tensor

from urepa.core.errors import UserError
from urepa.models.backbones.sit import SiT
from urepa.models.backbones.sit_net import SiTNetwork
from urepa.models.backbones.sit_published_net import load_published, to_published

# one name of each kind, as the published files have them
NAMES = {
    "x_embedder.proj.weight", "t_embedder.mlp.0.bias", "t_embedder.mlp.2.weight", "y_embedder.embedding_table.weight",
    "blocks.0.attn.qkv.weight", "blocks.0.attn.proj.bias", "blocks.2.mlp.fc1.weight", "blocks.2.mlp.fc2.bias",
    "blocks.0.adaLN_modulation.1.weight", "final_layer.linear.weight", "final_layer.adaLN_modulation.1.bias",
}  # fmt: skip


def published(backbone: SiTNetwork) -> dict[str, Tensor]:
    """Its values in another order, with the other entries of published files."""
    values = dict(reversed(backbone.state_dict().items()))
    return values | {"pos_embed": backbone.pos_embed.clone(), "projectors.0.0.weight": torch.zeros(7, 16)}


def legacy(values: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    """With the names of REPA's first files: the blocks after the tap are another list, counted from 0."""
    named = {}
    for name, value in values.items():
        first, _, rest = name.partition(".")
        block, _, part = rest.partition(".")
        behind = first == "blocks" and int(block) >= depth
        named[f"decoder_blocks.{int(block) - depth}.{part}" if behind else name] = value
    return named


@pytest.mark.parametrize("form", ["safetensors", "ema", "plain", "legacy", "old_pickle", "ddp", "export"])
def test_published_checkpoints_load_by_name(tmp_path: Path, form: str) -> None:
    source = small()
    assert set(source.state_dict()) >= NAMES
    file = tmp_path / ("model.safetensors" if form in ("safetensors", "export") else "sit.pt")
    values = published(source)
    if form in ("safetensors", "export"):
        save_file({k: v.contiguous() for k, v in values.items()}, file)
    elif form == "ema":
        about = {"model": {}, "ema": values, "args": Namespace(model="SiT-B/2"), "steps": 3}
        torch.save(about, file)
    elif form == "legacy":
        renamed = legacy(values, 1)
        assert "decoder_blocks.1.mlp.fc1.weight" in renamed
        torch.save({"ema": renamed}, file)
    elif form == "ddp":
        torch.save({"model": {f"module.{k}": v for k, v in values.items()}}, file)
    else:
        torch.save(values, file, _use_new_zipfile_serialization=form == "plain")
    file = tmp_path if form == "export" else file
    loaded = SiT(**(SMALL | {"weights": str(file)})).build(latent_shape=SHAPE, num_classes=5)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), source.parameters(), strict=True))


def averaged(values: Tensor, updates: int) -> Tensor:
    """The result of an EMA of decay 0.9999 over fixed values, which differ only by rounding."""
    ema = values.clone()
    for _ in range(updates):
        ema.mul_(0.9999).add_(values, alpha=1 - 0.9999)
    return ema


def test_positions_may_have_drifted_in_the_ema(tmp_path: Path) -> None:
    """As in the published training code: after 3,000 updates they exceed the former bound of 1e-4."""
    size = SMALL | {"width": 64}
    source = SiT(**size).build(latent_shape=(3, 32, 32), num_classes=5)
    ours = source.pos_embed
    drifted = averaged(ours, 3000)
    assert 1e-4 < (drifted - ours).abs().max() < 1e-3
    torch.save({"ema": published(source) | {"pos_embed": drifted}}, tmp_path / "sit.pt")
    loaded = SiT(**(size | {"weights": str(tmp_path / "sit.pt")})).build(latent_shape=(3, 32, 32), num_classes=5)
    assert torch.equal(loaded.pos_embed, ours)  # the fixed ones, not the drifted


def test_learned_positions_are_weights_like_others(tmp_path: Path) -> None:
    source = small(positions="learned")
    torch.save(published(source), tmp_path / "sit.pt")
    size = SMALL | {"weights": str(tmp_path / "sit.pt"), "positions": "learned"}
    loaded = SiT(**size).build(latent_shape=SHAPE, num_classes=5)
    assert torch.equal(loaded.pos_embed, source.pos_embed)
    assert loaded.pos_embed.requires_grad
    assert to_published(source).keys() == published(source).keys() - {"projectors.0.0.weight"}
    with pytest.raises(UserError, match=r"or learned its positions; for these give backbone\.positions=learned"):
        SiT(**(size | {"positions": "sincos"})).build(latent_shape=SHAPE, num_classes=5)
    torch.save({k: v for k, v in published(source).items() if k != "pos_embed"}, tmp_path / "sit.pt")
    with pytest.raises(UserError, match=r"1 of its weights differ by name or shape \(pos_embed\)"):
        SiT(**size).build(latent_shape=SHAPE, num_classes=5)


def test_another_grid_of_as_many_tokens_is_refused(tmp_path: Path) -> None:
    torch.save(published(small()), tmp_path / "sit.pt")
    with pytest.raises(UserError, match="was trained on another grid than 3x2"):
        SiT(**(SMALL | {"weights": str(tmp_path / "sit.pt")})).build(latent_shape=(3, 6, 4), num_classes=5)


def doubled(values: dict[str, Tensor], second: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Outputs with twice the channels, as in SiT's own files and DiT's: `second` after the first half, at each position
    of a patch. Both unpatchify to (p, p, 2C)."""
    parts = {}
    for name in ("final_layer.linear.weight", "final_layer.linear.bias"):
        own = values[name].unflatten(0, (4, 1, 3))
        parts[name] = torch.cat([own, second(own)], dim=1).flatten(0, 2)
    return values | parts


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", ["pt", "safetensors", "other_way"])
def test_files_in_half_precision_load(tmp_path: Path, dtype: torch.dtype, form: str) -> None:
    """Rounded once, when they were stored, whichever the direction of their time."""
    source = small()
    file = tmp_path / f"sit.{'safetensors' if form == 'safetensors' else 'pt'}"
    values = published(source)
    stored = {k: v.to(dtype) for k, v in (doubled(values, torch.zeros_like) if form == "other_way" else values).items()}
    if form == "safetensors":
        save_file(stored, file)
    else:
        torch.save(stored, file)
    loaded = SiT(**(SMALL | {"weights": str(file)})).build(latent_shape=SHAPE, num_classes=5).state_dict()
    if form == "other_way":
        torch.save({k: v.float() for k, v in stored.items()}, file)
        rounded = SiT(**(SMALL | {"weights": str(file)})).build(latent_shape=SHAPE, num_classes=5).state_dict()
    else:
        rounded = {k: stored[k].float() for k in loaded}
    assert {v.dtype for v in loaded.values()} == {torch.float32}
    assert all(torch.equal(v, rounded[k]) for k, v in loaded.items())


def test_sits_own_checkpoints_run_the_other_way(tmp_path: Path, inputs: Any) -> None:
    """There x_t = t·data + (1 − t)·noise, the velocity is data − noise, and the discarded half is 0."""
    theirs, (x_t, t_B, condition) = small(), inputs
    torch.save(doubled(published(theirs), torch.zeros_like), tmp_path / "sit.pt")
    ours = SiT(**(SMALL | {"weights": str(tmp_path / "sit.pt")})).build(latent_shape=SHAPE, num_classes=5)
    velocity = theirs(x_t, 1 - t_B, condition).prediction_RCHW
    torch.testing.assert_close(ours(x_t, t_B, condition).prediction_RCHW, -velocity, rtol=1e-4, atol=1e-4)
    assert (ours(x_t, 1 - t_B, condition).prediction_RCHW + velocity).abs().max() > 0.1


@pytest.mark.parametrize("part", ["weight", "bias"])
def test_a_dit_is_refused(tmp_path: Path, part: str) -> None:
    """It has SiT's names and shapes, but its variances were trained: one number that is not 0 shows it."""
    values = doubled(published(small()), torch.zeros_like)
    values[f"final_layer.linear.{part}"].unflatten(0, (2, 2, 6))[1, 0, 5] = 1e-3  # the last variance of the third place
    torch.save({"ema": values}, tmp_path / "dit.pt")
    with pytest.raises(UserError, match=r"dit.pt has learned variances .*: a DiT's, which predicts the noise"):
        SiT(**(SMALL | {"weights": str(tmp_path / "dit.pt")})).build(latent_shape=SHAPE, num_classes=5)


def test_an_incomplete_or_foreign_file_is_reported(tmp_path: Path) -> None:
    whole = tmp_path / "whole.pt"
    torch.save(published(small()), whole)
    (tmp_path / "cut.pt").write_bytes(whole.read_bytes()[:3000])
    (tmp_path / "cut.safetensors").write_bytes(b"1234")
    (tmp_path / "empty.pt").touch()
    (tmp_path / "text.pt").write_text("weights")
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    for name, words in (
        ("cut.pt", "copy it again"),
        ("cut.safetensors", "copy it again"),
        ("empty.pt", "copy it again"),
        ("tensor.pt", "no named"),
        ("text.pt", "or no weights at all"),
    ):
        with pytest.raises(UserError, match=words):
            SiT(**(SMALL | {"weights": str(tmp_path / name)})).build(latent_shape=SHAPE, num_classes=5)
    with pytest.raises(UserError, match=r"has no model\.safetensors: give a file in the published layout"):
        SiT(**(SMALL | {"weights": str(tmp_path)})).build(latent_shape=SHAPE, num_classes=5)


def test_weights_without_a_null_condition_are_refused(tmp_path: Path) -> None:
    values = published(small())
    values["y_embedder.embedding_table.weight"] = values["y_embedder.embedding_table.weight"][:5].clone()
    save_file(values, tmp_path / "sit.safetensors")
    with pytest.raises(UserError, match="has 5 rows of classes and data.num_classes=5 needs one more"):
        SiT(**(SMALL | {"weights": str(tmp_path / "sit.safetensors")})).build(latent_shape=SHAPE, num_classes=5)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    save_file(published(small()), tmp_path / "sit.safetensors")
    for changes, classes, words in (
        ({"depth": 4}, 5, "does not fit this backbone: 10 of its weights"),
        ({}, 7, r"1 of its weights differ by name or shape \(y_embedder.embedding_table.weight\)"),
        ({}, 6, "has 6 rows of classes .* needs one more, the null condition: give data.num_classes=5"),
        ({"patch": 1}, 5, "was trained on another grid than 4x6"),
        ({"width": 32}, 5, "does not fit this backbone"),
    ):
        with pytest.raises(UserError, match=words):
            load_published(
                SiT(**(SMALL | changes)).build(latent_shape=SHAPE, num_classes=classes), tmp_path / "sit.safetensors"
            )


class Anything:
    pass


def test_a_file_with_more_than_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"ema": published(small()), "hook": Anything()}, tmp_path / "sit.pt")
    with pytest.raises(UserError, match="holds more than tensors"):
        SiT(**(SMALL | {"weights": str(tmp_path / "sit.pt")})).build(latent_shape=SHAPE, num_classes=5)
    (tmp_path / "sit.pt").write_bytes(b"hello")
    with pytest.raises(UserError, match="is no whole torch file"):
        SiT(**(SMALL | {"weights": str(tmp_path / "sit.pt")})).build(latent_shape=SHAPE, num_classes=5)
