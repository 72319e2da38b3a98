"""Weights in the layout of apple/ml-flextok: all names and shapes, and the same function as a plain reference of the
published forward pass, on random weights.

Shapes: B batch, C channels, S tokens of a sequence, N patches, K registers, D width, A heads, E width of a head.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tiny_flextok import SMALL
from torch import Tensor

from urepa.core.conditions import Condition, Part
from urepa.core.errors import UserError
from urepa.core.part_names import IMAGE, KEEP
from urepa.models.backbones.flextok import FlexTok
from urepa.models.backbones.flextok_net import FlexTokNetwork
from urepa.models.backbones.flextok_published_net import from_published

LIST = Path(__file__).with_name("flextok_published.txt")
SHAPE, WIDTHS = (3, 4, 4), {IMAGE: 3, KEEP: 1}
WIDTH, DEPTH, HEAD, REGISTERS, PATCHES, EPS = 24, 2, 8, 5, 4, 1e-5
PUBLISHED: dict[str, Any] = {"mlp_ratio": 2.6667, "norm_eps": EPS, "mask_positions": False}
SIZES = PUBLISHED | {"encoder_width": WIDTH, "decoder_width": WIDTH, "encoder_depth": DEPTH, "decoder_depth": DEPTH}
SIZES |= {"head_dim": HEAD, "registers": REGISTERS}


def listed() -> dict[str, tuple[int, ...]]:
    lines = [line.split() for line in LIST.read_text().splitlines() if not line.startswith("#")]
    return {name: tuple(map(int, shape.split("x"))) for name, shape in lines}


def positions(side: int, width: int) -> Tensor:
    """[1,D,side,side]: sines and cosines of the row, then of the column."""
    found = torch.zeros(1, width, side, side)
    quarter = width // 4
    for row in range(side):
        for column in range(side):
            for i in range(quarter):
                for part, place in enumerate((row, column)):
                    angle = place / 10_000 ** (i / quarter)
                    found[0, 2 * part * quarter + i, row, column] = math.sin(angle)
                    found[0, (2 * part + 1) * quarter + i, row, column] = math.cos(angle)
    return found


def small_weights() -> dict[str, Tensor]:
    """Random weights of a small model under all listed names of its depth."""
    torch.manual_seed(0)
    hidden = int(2 * (4 * WIDTH) / 3)
    small = {1152: WIDTH, 3072: hidden, 64: 12, 256: REGISTERS, 12 * 1152: 12 * WIDTH, 2 * 1152: 2 * WIDTH, 16: 2}
    weights = {}
    for name, shape in listed().items():
        if name.endswith("time_embedder.mlp.0.weight"):
            weights[name] = 0.3 * torch.randn(WIDTH, 256)
        elif ".blocks." not in name or int(name.split(".blocks.")[1].split(".")[0]) < DEPTH:
            weights[name] = 0.3 * torch.randn([small.get(size, size) for size in shape])
    for part in ("encoder.module_dict.enc_posemb_module", "decoder.module_dict.dec_patches_posemb_module"):
        weights[f"{part}.posembs"] = positions(2, WIDTH)
    return weights


# --- the published forward pass, written from its description -----------------------------------------------


def norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=EPS)


def attention(w: dict[str, Tensor], x_SD: Tensor, mask_SS: Tensor | None) -> Tensor:
    q, k, v = (F.linear(x_SD, w[f"attn.w{n}.weight"]).unflatten(1, (-1, HEAD)).transpose(0, 1) for n in "qkv")
    scores_ASS = norm(q) @ norm(k).transpose(1, 2) * 8 / HEAD
    if mask_SS is not None:
        scores_ASS = scores_ASS.masked_fill(~mask_SS, -torch.inf)
    return F.linear((scores_ASS.softmax(-1) @ v).transpose(0, 1).flatten(1), w["attn.proj.weight"])


def mlp(w: dict[str, Tensor], x: Tensor) -> Tensor:
    return F.linear(F.silu(F.linear(x, w["mlp.fc1.weight"])) * F.linear(x, w["mlp.fc3.weight"]), w["mlp.fc2.weight"])


def below(weights: dict[str, Tensor], place: str) -> dict[str, Tensor]:
    return {name.removeprefix(place): value for name, value in weights.items() if name.startswith(place)}


def linear(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def patches_of(x_CHW: Tensor) -> Tensor:
    """[N,p·p·C]: a patch's row, column, channel."""
    rows = [x_CHW[:, i : i + 2, j : j + 2].permute(1, 2, 0).flatten() for i in (0, 2) for j in (0, 2)]
    return torch.stack(rows)


def encode(weights: dict[str, Tensor], x0_CHW: Tensor) -> Tensor:
    """The values [K,d] before they are quantised."""
    w = below(weights, "encoder.module_dict.")
    patches_ND = linear(w, "enc_patch_emb.patch_proj", patches_of(x0_CHW))
    patches_ND = patches_ND + w["enc_posemb_module.posembs"][0].flatten(1).T
    x = torch.cat([patches_ND, w["enc_register_module.registers"]])
    mask = torch.ones(len(x), len(x)).tril().bool()
    mask[:PATCHES, :PATCHES] = True
    for i in range(DEPTH):
        block = below(w, f"enc_transformer.blocks.{i}.")
        x = x + attention(block, norm(x), mask)
        x = x + mlp(block, norm(x))
    return linear(w, "enc_to_latents.proj", norm(x[PATCHES:]))


def decode(weights: dict[str, Tensor], x_t: Tensor, t: float, codes_Kd: Tensor, kept: int, has_image: bool) -> Tensor:
    """The prediction [C,H,W]."""
    w = below(weights, "decoder.module_dict.")
    registers = linear(w, "dec_from_latents.proj", codes_Kd) + w["dec_registers_posemb_module.posembs"][0, 0].T
    registers[kept:] = w["dec_nested_dropout.dropout_mask_token"]
    if not has_image:
        registers[:] = w["dec_latent_dropout.nullcond"]
    patches_ND = linear(w, "dec_noise_patch_emb.patch_proj", patches_of(x_t))
    patches_ND = patches_ND + w["dec_patches_posemb_module.posembs"][0].flatten(1).T
    x = torch.cat([patches_ND, registers])
    angles = 1000 * t * torch.exp(-math.log(256) * torch.arange(128) / 128)
    time = below(w, "dec_time_embedder.")
    c = linear(time, "mlp.2", F.silu(linear(time, "mlp.0", torch.cat([angles.cos(), angles.sin()]))))
    for i in range(DEPTH):
        block = below(w, f"dec_transformer.blocks.{i}.")
        of_patches, of_registers = linear(block, "adaLN_modulation.1", F.silu(c)).chunk(2)
        both = torch.cat([of_patches.expand(PATCHES, -1), of_registers.expand(REGISTERS, -1)])
        gate_a, gate_m, shift_a, scale_a, shift_m, scale_m = both.chunk(6, dim=1)
        x = x + gate_a * attention(block, norm(x) * (1 + scale_a) + shift_a, None)
        x = x + gate_m * mlp(block, norm(x) * (1 + scale_m) + shift_m)
    shift, scale = linear(w, "dec_to_patches.adaLN_modulation.1", F.silu(c)).chunk(2)
    out = linear(w, "dec_to_patches.proj", norm(x[:PATCHES]) * (1 + scale) + shift)
    image = torch.zeros(SHAPE)
    for n, (i, j) in enumerate((i, j) for i in (0, 2) for j in (0, 2)):
        image[:, i : i + 2, j : j + 2] = out[n].view(2, 2, 3).permute(2, 0, 1)
    return image


# --- tests -----------------------------------------------------------------------------------------------------


def built(tmp_path: Path, weights: dict[str, Tensor], **changes: Any) -> FlexTokNetwork:
    save_file({name: value.contiguous() for name, value in weights.items()}, tmp_path / "model.safetensors")
    settings = SMALL | SIZES | {"weights": str(tmp_path / "model.safetensors")} | changes
    return FlexTok(**settings).build(latent_shape=SHAPE, num_classes=1, widths=WIDTHS)


def test_all_listed_names_and_shapes_are_those_of_the_full_size() -> None:
    sizes = {"registers": 256, "head_dim": 64, "encoder_depth": 18, "decoder_depth": 18}
    sizes |= {"encoder_width": 1152, "decoder_width": 1152}
    with torch.device("meta"):
        stored = {name: torch.empty(shape) for name, shape in listed().items()}
        declared = FlexTok(**(SMALL | PUBLISHED | sizes))
        own = declared.build_without_weights(latent_shape=(16, 32, 32), num_classes=1, widths={IMAGE: 16, KEEP: 1})
    found = from_published(stored, 2)
    assert {name: value.shape for name, value in found.items()} == {k: v.shape for k, v in own.state_dict().items()}


@pytest.mark.parametrize(("kept", "has_image"), [(1, True), (3, True), (REGISTERS, True), (REGISTERS, False)])
def test_published_weights_give_the_published_function(tmp_path: Path, kept: int, has_image: bool) -> None:
    weights = small_weights()
    network = built(tmp_path, weights | {"vae.encoder.weight": torch.zeros(3)})
    x0, x_t = torch.randn(SHAPE), torch.randn(SHAPE)
    values: dict[str, Tensor] = {}
    network.encoder.to_codes.register_forward_hook(lambda _, __, output: values.update(z=output))
    codes = network.encode(x0[None])
    torch.testing.assert_close(values["z"][0], encode(weights, x0), rtol=1e-4, atol=1e-4)
    kept_BK = torch.arange(REGISTERS)[None] < kept
    part = Part.of(network.encoder.quantiser.vectors(codes), kept_BK)
    condition = Condition({"codes": part if has_image else part.withhold(torch.tensor([True]))})
    ours = network(x_t[None], torch.tensor([0.37]), condition).prediction_RCHW[0]
    theirs = decode(weights, x_t, 0.37, network.encoder.quantiser.vectors(codes)[0], kept, has_image)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "changes", "words"),
    [
        ({}, {"decoder_width": 32}, r"\d+ of its weights differ .*; give backbone.decoder_width=24 \(here 32\)"),
        ({}, {"encoder_depth": 3, "registers": 4}, r"encoder_depth=2 \(here 3\), backbone.registers=5 \(here 4\)"),
        ({}, {"mlp_ratio": 4.0}, "choose the sizes"),
        (
            {"decoder.module_dict.dec_latent_dropout.nullcond": None},
            {},
            "lack 'decoder.*nullcond'; give the whole",
        ),
        ({"decoder.module_dict.more": torch.zeros(1)}, {}, r"1 of its weights differ by name or shape \(decoder.mod"),
        (
            {"encoder.module_dict.enc_posemb_module.posembs": positions(2, WIDTH).transpose(2, 3)},
            {},
            "enc_posemb_module.posembs .* are not the sine-cosine positions",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    tmp_path: Path, change: dict[str, Tensor | None], changes: dict[str, Any], words: str
) -> None:
    weights = {name: value for name, value in (small_weights() | change).items() if value is not None}
    with pytest.raises(UserError, match=words):
        built(tmp_path, weights, **changes)
