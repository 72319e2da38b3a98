"""SiT, compared with its formulas and the published sizes; taps do not change the prediction."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from class_ids import ids_of
from tiny_sit import SHAPE, SMALL, small
from torch import Tensor

from urepa.core.errors import UserError
from urepa.core.types import no_rows
from urepa.models.backbones.sit import SiT
from urepa.models.backbones.sit_net import SiTNetwork
from urepa.models.lora.lora_net import add_lora
from urepa.training.assembly import build_part

# SiT's table 1 (arXiv 2401.08740): millions of parameters, without the projector
SIZES = {"sit_s2": 32.9, "sit_b2": 130.3, "sit_l2": 457.8, "sit_xl2": 674.8}


# --- the definition -----------------------------------------------------------------------------------------


def place(row: int, column: int, width: int) -> list[float]:
    """One token's position: sine and cosine of its column, then of its row, with width/4 frequencies each."""
    frequencies = [10_000 ** (-i / (width // 4)) for i in range(width // 4)]
    return [f(x * w) for x in (column, row) for f in (math.sin, math.cos) for w in frequencies]


def norm(x: Tensor, eps: float = 1e-6) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + eps).sqrt()


def by_the_formulas(w: dict[str, Tensor], x_t: Tensor, t: Tensor, ids: Tensor, size: dict[str, Any]) -> list[Tensor]:
    """The states after each block, then the prediction, sample by sample and head by head, by the weights' names."""
    p, width, heads = size["patch"], size["width"], size["heads"]
    channels, h, c = SHAPE[0], SHAPE[1] // p, SHAPE[2] // p

    def dense(name: str, x: Tensor) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def silu(x: Tensor) -> Tensor:
        return x / (1 + (-x).exp())

    def gelu(x: Tensor) -> Tensor:
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    def attend(name: str, x: Tensor) -> Tensor:
        outs = []
        parts = dense(f"{name}.qkv", x).split(width, dim=1)
        for a in range(heads):
            own = slice(a * width // heads, (a + 1) * width // heads)
            q, k, v = (part[:, own] for part in parts)
            if size["qk_norm"]:
                q, k = (
                    norm(y, 1e-5) * w[f"{name}.{n}_norm.weight"] + w[f"{name}.{n}_norm.bias"]
                    for n, y in (("q", q), ("k", k))
                )
            outs.append(torch.softmax(q @ k.T / math.sqrt(width // heads), dim=1) @ v)
        return dense(f"{name}.proj", torch.cat(outs, dim=1))

    states: list[list[Tensor]] = []
    for image, time, label in zip(x_t, t, ids, strict=True):
        tokens = []
        for row in range(h):
            for column in range(c):
                patch = image[:, row * p : (row + 1) * p, column * p : (column + 1) * p]
                token = (w["x_embedder.proj.weight"] * patch).sum((1, 2, 3)) + w["x_embedder.proj.bias"]
                fixed = torch.tensor(place(row, column, width), dtype=token.dtype)
                tokens.append(token + (w["pos_embed"][0, row * c + column] if "pos_embed" in w else fixed))
        x = torch.stack(tokens)
        angles = [float(time) * 10_000 ** (-i / 128) for i in range(128)]
        waves = torch.tensor([math.cos(a) for a in angles] + [math.sin(a) for a in angles], dtype=x.dtype)
        embedded = dense("t_embedder.mlp.2", silu(dense("t_embedder.mlp.0", waves)))
        condition = silu(embedded + w["y_embedder.embedding_table.weight"][label])
        own: list[Tensor] = []
        for k in range(size["depth"]):
            block = f"blocks.{k}"
            shift1, scale1, gate1, shift2, scale2, gate2 = dense(f"{block}.adaLN_modulation.1", condition).split(width)
            x = x + gate1 * attend(f"{block}.attn", norm(x) * (1 + scale1) + shift1)
            inner = gelu(dense(f"{block}.mlp.fc1", norm(x) * (1 + scale2) + shift2))
            x = x + gate2 * dense(f"{block}.mlp.fc2", inner)
            own.append(x)
        shift, scale = dense("final_layer.adaLN_modulation.1", condition).split(width)
        out = dense("final_layer.linear", norm(x) * (1 + scale) + shift)
        picture = torch.zeros_like(image)
        for n, numbers in enumerate(out):
            row, column = divmod(n, c)
            there = numbers.view(p, p, channels).permute(2, 0, 1)
            picture[:, row * p : (row + 1) * p, column * p : (column + 1) * p] = there
        states.append([*own, picture])
    return [torch.stack(same) for same in zip(*states, strict=True)]


@pytest.mark.parametrize("positions", ["sincos", "learned"])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_the_forward_pass_is_the_written_definition(inputs: Any, qk_norm: bool, positions: str) -> None:
    backbone, (x_t, t_B, condition) = small(qk_norm=qk_norm, positions=positions), inputs
    taps = ("block_0", "block_1", "block_2")
    denoised = backbone(x_t, t_B, condition, taps)
    expected = by_the_formulas(backbone.state_dict(), x_t, t_B, ids_of(condition, 5), SMALL | {"qk_norm": qk_norm})
    found = [*(denoised.features[tap].x_BND for tap in taps), denoised.prediction_RCHW]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=5e-5)


def test_learned_positions_change_no_other_weight_at_the_start() -> None:
    sizes: dict[str, Any] = {"latent_shape": (3, 16, 16), "num_classes": 5}
    begun = []
    for positions in ("sincos", "learned"):
        torch.manual_seed(0)
        begun.append(SiT(**(SMALL | {"positions": positions})).build(**sizes).state_dict())
    fixed, learned = begun
    drawn = learned.pop("pos_embed")
    assert learned.keys() == fixed.keys()
    assert all(torch.equal(learned[name], fixed[name]) for name in fixed)
    assert drawn.shape == (1, 64, 16)
    assert drawn.std().item() == pytest.approx(0.02, rel=0.1)


@pytest.mark.fast(1)
@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_the_published_ones(compose: Callable[..., dict[str, Any]], name: str) -> None:
    config = compose("+experiment=repa_imagenet256", f"backbone={name}")
    with torch.device("meta"):
        backbone = build_part(config["backbone"], latent_shape=(4, 32, 32), num_classes=1000)
    assert round(sum(p.numel() for p in backbone.parameters()) / 1e6, 1) == SIZES[name]


def test_at_the_start_blocks_are_the_identity_and_the_prediction_is_zero(inputs: Any) -> None:
    torch.manual_seed(0)
    backbone = SiT(**SMALL).build(latent_shape=SHAPE, num_classes=5)
    denoised = backbone(*inputs, taps=("block_0", "block_2"))
    assert torch.equal(denoised.features["block_0"].x_BND, denoised.features["block_2"].x_BND)
    assert torch.equal(denoised.prediction_RCHW, torch.zeros(3, *SHAPE))
    embedded = backbone.y_embedder.embedding_table.weight
    assert embedded.shape == (6, 16)
    spread = [p.std().item() for p in (backbone.t_embedder.mlp[0].weight, backbone.t_embedder.mlp[2].weight)]
    assert spread == pytest.approx([0.02, 0.02], rel=0.15)
    # Xavier: uniform up to sqrt(6 / (inputs + outputs)), for patches as for a dense layer
    for weight, inputs_, outputs in (
        (backbone.x_embedder.proj.weight, 12, 16),
        (backbone.blocks[0].mlp.fc1.weight, 16, 64),
        (backbone.blocks[0].attn.qkv.weight, 16, 48),
    ):
        assert 0.9 < weight.abs().max().item() / math.sqrt(6 / (inputs_ + outputs)) <= 1


# --- taps and rows ------------------------------------------------------------------------------------------


def test_taps_change_nothing_and_carry_their_grid(inputs: Any) -> None:
    backbone = small()
    plain = backbone(*inputs).prediction_RCHW
    denoised = backbone(*inputs, taps=("block_2", "block_0"))
    assert torch.equal(denoised.prediction_RCHW, plain)
    assert {tap: (f.grid, f.x_BND.shape) for tap, f in denoised.features.items()} == dict.fromkeys(
        ("block_0", "block_2"), ((2, 3), (3, 6, 16))
    )
    assert backbone.tap_width("block_1") == 16
    loss = denoised.prediction_RCHW.pow(2).sum()
    assert torch.autograd.grad(loss, denoised.features["block_0"].x_BND)[0].abs().max() > 0


@pytest.mark.parametrize("tap", ["block_3", "mid", "block_-1", "block_01"])
def test_a_missing_tap_is_an_error_that_names_the_others(inputs: Any, tap: str) -> None:
    with pytest.raises(UserError, match=f"no tap '{tap}'; it has block_0 to block_2"):
        small()(*inputs, taps=(tap,))
    with pytest.raises(UserError, match="no tap"):
        small().tap_width(tap)


def test_only_the_requested_rows_continue_after_the_deepest_tap(inputs: Any) -> None:
    backbone, rows = small(), torch.tensor([2, 0])
    whole = backbone(*inputs, taps=("block_1",))
    part = backbone(*inputs, taps=("block_1",), rows_R=rows)
    torch.testing.assert_close(part.prediction_RCHW, whole.prediction_RCHW[rows])
    assert torch.equal(part.features["block_1"].x_BND, whole.features["block_1"].x_BND)
    entered: list[int] = []
    for k, block in enumerate(backbone.blocks):
        block.register_forward_hook(lambda *_, k=k: entered.append(k))
    none = backbone(*inputs, taps=("block_1",), rows_R=no_rows(torch.device("cpu")))
    assert entered == [0, 1]
    assert none.prediction_RCHW.shape == (0, *SHAPE)
    assert torch.equal(none.features["block_1"].x_BND, whole.features["block_1"].x_BND)


def test_what_trains_before_and_after_a_tap() -> None:
    backbone = small()
    backbone.freeze_after(("block_0", "block_1"))
    frozen = {name.rsplit(".", 2)[0] for name, p in backbone.named_parameters() if not p.requires_grad}
    assert {name[:8] for name in frozen} == {"blocks.2", "final_la"}
    backbone.requires_grad_(False)
    backbone.blocks[1].attn.qkv.weight.requires_grad_(True)
    assert [backbone.trains_before(f"block_{k}") for k in range(3)] == [False, True, True]
    stages = {backbone.stage_of(name) for name, _ in backbone.named_parameters()}
    assert stages == {"embedding", "blocks", "output"}
    assert backbone.stage_of("blocks.1.attn.qkv.weight") == "blocks"


def test_the_null_row_is_the_last(inputs: Any) -> None:
    backbone, (x_t, t_B, condition) = small(), inputs
    prediction, null = (backbone(x_t, t_B, c).prediction_RCHW for c in (condition, condition.null()))
    differs = [not torch.equal(a, b) for a, b in zip(prediction, null, strict=True)]
    assert differs == [True, True, False]  # the third is null already
    assert not torch.equal(backbone(x_t, t_B + 0.01, condition).prediction_RCHW, prediction)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"patch": 4}, "patch=4 does not divide the 4x6 latent"),
        ({"width": 18}, "width=18: give a multiple of 4"),
        ({"heads": 3}, "multiple of 4 and of backbone.heads=3"),
        ({"weights": "nowhere.pt"}, "backbone.weights=nowhere.pt is not there; give a path, or a file on the hub"),
    ],
)
def test_sizes_that_do_not_fit_are_user_errors(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        SiT(**(SMALL | changes)).build(latent_shape=SHAPE, num_classes=5)


# --- LoRA ---------------------------------------------------------------------------------------------------


def test_lora_adapts_attention_and_initially_has_no_effect(inputs: Any) -> None:
    backbone = small()
    plain = backbone(*inputs).prediction_RCHW
    add_lora(backbone, 2, None, 0.0, "attention", "all")
    assert torch.equal(backbone(*inputs).prediction_RCHW, plain)
    trains = {n: p.numel() for n, p in backbone.named_parameters() if p.requires_grad}
    assert len(trains) == 3 * 2 * 2
    assert sum(trains.values()) == 3 * 2 * ((16 + 48) + (16 + 16))
    assert all("lora_" in n for n in trains)
    assert backbone.trains_before("block_0")
    backbone.freeze_after(("block_0",))
    assert len([p for p in backbone.parameters() if p.requires_grad]) == 4
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    assert not torch.allclose(backbone(*inputs).prediction_RCHW, plain, atol=1e-2)


def test_lora_on_sit_b_has_its_size() -> None:
    with torch.device("meta"):
        backbone = SiTNetwork((4, 32, 32), 1000, 2, 12, 768, 12, False, "sincos")
        add_lora(backbone, 8, None, 0.0, "attention", "all")
    assert sum(p.numel() for p in backbone.parameters() if p.requires_grad) == 442_368


@pytest.mark.parametrize(("targets", "blocks"), [("attention", "mid"), ("attention_conv", "all")])
def test_lora_that_only_a_unet_has_is_refused(targets: str, blocks: str) -> None:
    with pytest.raises(UserError, match=f"lora.targets={targets} lora.blocks={blocks}: .*give lora=all_attention"):
        add_lora(small(), 2, None, 0.0, targets, blocks)
