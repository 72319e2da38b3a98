"""Transformers of diffusers and their own pipelines: latents, adapters as files and the images that they make, types of
frozen weights, sizes.

Shapes: B batch, C channels, H/W latent, S side.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from family_vaes import decoder_of, write_family_vae
from torch import Tensor, nn
from transformers_tiny import CASES, architecture_of, backbone_of, declared_of, pipeline_of, texts, write_tiny

from urepa.core.conditions import Condition
from urepa.core.errors import UserError
from urepa.core.part_names import LAYERS, POOLED, TEXT
from urepa.data.stages.vae import load_vae
from urepa.method.ddpm_sampling import image_noise, sample_images
from urepa.models.backbones.two_streams_net import packed, unpacked
from urepa.models.lora.lora_net import add_lora
from urepa.models.speed_switches import hold_frozen_in_bf16

every = pytest.mark.parametrize("case", CASES)
CLOSE, STEPS = 1e-5, 4
# of values in [0,1]: 1/400 of a grey level, and a third of the effect of any one adapted layer
PIXELS_CLOSE, GREY_LEVEL = 1e-5, 1 / 255
IMAGES, SEED = [(0, 0), (0, 1)], 7  # class and index, which address the noise


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A transformer and a VAE of each case."""
    root = tmp_path_factory.mktemp("transformers")
    made = {case: write_tiny(root / case, case) for case in CASES}
    return {case: write_family_vae(folder, case, CASES[case].latent[0]) for case, folder in made.items()}


def captions(case: str, seed: int = 1) -> Condition:
    lengths = (6, 4) if CASES[case].has_mask else (6, 6)
    return texts(case, *lengths, seed=seed)


def ours(backbone: Any, case: str, condition: Condition | None = None) -> Tensor:
    """x0 [B,C,H,W] as `urepa.generate` samples it."""
    tiny = CASES[case]
    condition = captions(case) if condition is None else condition
    how: dict[str, Any] = {"sampler": tiny.sampler, "steps": STEPS, "guidance": tiny.scale, "seed": SEED}
    with torch.no_grad():
        return sample_images(backbone, tiny.objective, IMAGES, tiny.latent, condition, **how)


def called(pipe: Any, case: str, output_type: str) -> Tensor:
    """The output of the pipeline's own call, from the same noise."""
    tiny, own = CASES[case], captions(case)
    factor = declared_of(case).vae_factor
    _, height, width = tiny.latent
    noise = torch.stack([image_noise(SEED, *image, tiny.latent) for image in IMAGES])
    made: Tensor = pipe(
        **tiny.call(own, own.null()),
        **tiny.guided,
        **tiny.of_pipeline,
        latents=packed(noise) if tiny.unpack else noise,
        num_inference_steps=STEPS,
        height=factor * height,
        width=factor * width,
        output_type=output_type,
    ).images
    return made


def theirs(pipe: Any, case: str) -> Tensor:
    """x0 [B,C,H,W] of the pipeline's own call."""
    latents, (_, height, width) = called(pipe, case, "latent"), CASES[case].latent
    if CASES[case].unpack:
        return unpacked(latents, (height // 2, width // 2))
    if case == "flux2_klein":  # its latents are the VAE's
        normed: Tensor = pipe.vae.bn(F.pixel_unshuffle(latents, 2))
        return normed
    return latents.mT.unflatten(2, (height, width)) if case == "flux2" else latents


def base_pipeline(folders: dict[str, Path], case: str) -> Any:
    return pipeline_of(backbone_of(folders[case], case).transformer, case, load_vae(str(folders[case])))


@pytest.mark.fast(3)
@every
def test_latents_are_those_of_the_familys_own_pipeline(folders: dict[str, Path], case: str) -> None:
    """In guided steps from the same noise: time, sign, conditions, the times of the sampler."""
    expected = theirs(base_pipeline(folders, case), case)
    found = ours(backbone_of(folders[case], case), case)
    assert float((found - expected).abs().max()) <= CLOSE
    assert float(expected.std()) > 0.1
    other = ours(backbone_of(folders[case], case), case, captions(case, seed=2))
    assert float((other - expected).abs().max()) > 100 * CLOSE


# --- adapters ---------------------------------------------------------------------------------------------------


def adapted(folder: Path, case: str, **changes: Any) -> Any:
    """With adapters that all have an effect."""
    backbone = backbone_of(folder, case)
    torch.manual_seed(1)
    settings = {"rank": 4, "alpha": 2, "dropout": 0.0, "targets": "attention", "blocks": "all"}
    add_lora(backbone, **(settings | changes))
    for name, parameter in backbone.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.5)
    return backbone


def layers_of(case: str) -> int:
    """How many layers are adapted, counted by hand: projections of attention, less what has none."""
    if case in ("sd3", "sd35"):  # 3 blocks of 8, the last without to_add_out, and the second attentions
        return 3 * 8 - 1 + 4 * len(declared_of(case).dual_attention_layers)
    if case in ("flux", "chroma", "ovis_image"):  # 2 double-stream blocks of 8; 2 single-stream ones have no output's
        return 2 * 8 + 2 * 3
    if case in ("auraflow", "hidream"):  # 2 double-stream blocks of 8 and 2 single-stream ones of 4
        return 2 * 8 + 2 * 4
    if case.startswith("flux2"):  # 2 double-stream blocks of 8 and 2 single-stream ones of 2
        return 2 * 8 + 2 * 2
    if case == "lumina2":  # 1 + 3 blocks, and 1 of the text
        return 5 * 4
    return 3 * 2 * 4  # self-attention and cross-attention


@pytest.mark.fast(3)
@every
def test_adapters_come_back_through_the_pipeline(
    folders: dict[str, Path], tmp_path: Path, compose: Any, case: str
) -> None:
    """Its pixels are ours, with α other than the rank; and they come back into the backbone."""
    backbone = adapted(folders[case], case)
    b = {name: p for name, p in backbone.named_parameters() if "lora_B" in name}
    assert len(b) == layers_of(case)
    assert all(float(p.detach().abs().max()) > 0 for p in b.values())
    x0, decode = ours(backbone, case), decoder_of(folders[case], compose)
    expected = decode(x0)
    assert float((expected % 1 > 0).float().mean()) > 0.9  # few are clamped
    backbone.export(tmp_path)
    pipe = base_pipeline(folders, case)
    assert float((called(pipe, case, "pt") - expected).abs().max()) > GREY_LEVEL
    if declared_of(case).loads_lora:
        pipe.load_lora_weights(tmp_path)
    else:
        from peft import PeftModel

        pipe.transformer = PeftModel.from_pretrained(pipe.transformer, tmp_path).merge_and_unload()
    assert float((called(pipe, case, "pt") - expected).abs().max()) <= PIXELS_CLOSE
    found = declared_of(case).find_weights(tmp_path)
    again = backbone_of(folders[case], case)
    again.load_adapters(found.files[0])
    assert float((ours(again, case) - x0).abs().max()) <= CLOSE * max(1.0, float(x0.abs().max()))


@every
def test_an_adapter_file_of_another_transformer_is_refused(folders: dict[str, Path], tmp_path: Path, case: str) -> None:
    adapted(folders[case], case).export(tmp_path)
    (file, *_) = declared_of(case).find_weights(tmp_path).files
    other = (
        "sana" if case.startswith("sd3") or case in ("flux", "chroma", "auraflow", "flux2", "flux2_klein") else "sd3"
    )
    backbone = backbone_of(folders[other], other)
    backbone.adapter_files = backbone_of(folders[case], case).adapter_files
    with pytest.raises(UserError, match="does not fit this transformer"):
        backbone.load_adapters(file)


# --- types of frozen weights --------------------------------------------------------------------------------------


def held(backbone: Any) -> dict[str, Tensor]:
    """Its tensors as training holds them, by name."""
    torch.manual_seed(3)
    add_lora(backbone, 4, None, 0.0, "attention", "all")
    hold_frozen_in_bf16(backbone)
    return dict(backbone.named_parameters()) | dict(backbone.named_buffers())


@pytest.mark.fast(3)
@every
def test_weights_read_in_bf16_are_those_that_were_cast(folders: dict[str, Path], case: str) -> None:
    """Adapters and tables of positions in fp32; and all is what diffusers reads."""
    import diffusers

    straight = held(backbone_of(folders[case], case, torch.bfloat16))
    cast = held(backbone_of(folders[case], case))
    assert straight.keys() == cast.keys()
    assert all(straight[n].dtype == cast[n].dtype and torch.equal(straight[n], cast[n]) for n in cast)
    assert {p.dtype for p in straight.values()} == {torch.float32, torch.bfloat16}
    own = backbone_of(folders[case], case).transformer
    read = getattr(diffusers, declared_of(case).network).from_pretrained(folders[case] / "transformer")
    for ask in ("named_parameters", "named_buffers"):
        theirs_, ours_ = dict(getattr(read, ask)()), dict(getattr(own, ask)())
        assert theirs_.keys() == ours_.keys()
        assert all(torch.equal(theirs_[name], ours_[name]) for name in theirs_)


@every
def test_shards_are_read_and_a_missing_weight_is_said(tmp_path: Path, case: str) -> None:
    import diffusers
    from safetensors.torch import load_file, save_file

    torch.manual_seed(0)
    module = getattr(diffusers, declared_of(case).network)(**architecture_of(case))
    module.save_pretrained(tmp_path / "sharded" / "transformer", max_shard_size="200KB")
    assert len(list((tmp_path / "sharded" / "transformer").glob("*.safetensors"))) > 1
    read = backbone_of(tmp_path / "sharded", case).transformer
    assert all(torch.equal(p, q) for p, q in zip(read.parameters(), module.parameters(), strict=True))
    module.save_pretrained(tmp_path / "whole" / "transformer")
    (file,) = (tmp_path / "whole" / "transformer").glob("*.safetensors")
    tensors = load_file(file)
    lost = max(name for name in tensors if name.startswith(CASES[case].output))
    tensors.pop(lost)
    save_file(tensors, file)
    with pytest.raises(UserError, match=r"does not hold a whole transformer: 1 weights are missing .*" + lost):
        backbone_of(tmp_path / "whole", case)


# --- published sizes ------------------------------------------------------------------------------------------------


def linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def sd3(layers: int, width: int, dual: int, normed: bool) -> int:
    """Parameters, by hand: text of 4096, a pooled vector of 2048, 16 channels in patches of 2."""
    embedded = linear(4 * 16, width) + linear(4096, width)
    time_and_pooled = linear(256, width) + linear(2048, width) + 2 * linear(width, width)
    mlp = linear(width, 4 * width) + linear(4 * width, width)
    attention, norms = 8 * linear(width, width), 4 * 64 if normed else 0
    block = attention + norms + 2 * mlp + 2 * linear(width, 6 * width)
    second = dual * (4 * linear(width, width) + 2 * 64 * normed + linear(width, 3 * width))
    # the last block's text has neither an output, nor an MLP, nor a gate
    less = linear(width, width) + mlp + linear(width, 4 * width)
    return embedded + time_and_pooled + layers * block + second - less + linear(width, 2 * width) + linear(width, 64)


def pixart(embeds_size: bool) -> int:
    """28 blocks of 1152, text of 4096."""
    width = 1152
    attention = 4 * linear(width, width)
    block = 2 * attention + linear(width, 4 * width) + linear(4 * width, width) + 6 * width
    time = linear(256, width) + linear(width, width) + linear(width, 6 * width)
    sizes = 2 * (linear(256, width // 3) + linear(width // 3, width // 3)) if embeds_size else 0
    text = linear(4096, width) + linear(width, width)
    return linear(4 * 4, width) + time + sizes + text + 28 * block + 2 * width + linear(width, 4 * 8)


def sana(layers: int, width: int, cross: int) -> int:
    """Text of 2304, 32 channels in patches of 1; the MLP is two 1x1 convolutions and a depthwise 3x3 one."""
    hidden = int(2.5 * width)
    itself = 3 * width * width + linear(width, width)
    other = linear(width, cross) + 2 * linear(cross, cross) + linear(cross, width)
    mlp = linear(width, 2 * hidden) + 9 * 2 * hidden + 2 * hidden + hidden * width
    block = itself + other + mlp + 6 * width
    time = linear(256, width) + linear(width, width) + linear(width, 6 * width)
    text = linear(2304, width) + linear(width, width) + width
    return linear(32, width) + time + text + layers * block + 2 * width + linear(width, 32)


def flux(guidance: bool) -> int:
    """19 double-stream and 38 single-stream blocks of 3072, text of 4096, a pooled vector of 768."""
    width = 3072
    embedded = linear(64, width) + linear(4096, width)
    vectors = (1 + guidance) * linear(256, width) + linear(768, width) + (2 + guidance) * linear(width, width)
    mlp = linear(width, 4 * width) + linear(4 * width, width)
    double = 8 * linear(width, width) + 4 * 128 + 2 * mlp + 2 * linear(width, 6 * width)
    single = 3 * linear(width, width) + 2 * 128 + linear(width, 4 * width) + linear(5 * width, width)
    single += linear(width, 3 * width)
    return embedded + vectors + 19 * double + 38 * single + linear(width, 2 * width) + linear(width, 64)


def chroma() -> int:
    """Flux.1's blocks without their own modulation, which one network of width 5120 gives."""
    width, hidden = 3072, 5120
    embedded = linear(64, width) + linear(4096, width)
    modulation = linear(64, hidden) + 5 * (2 * linear(hidden, hidden) + hidden) + linear(hidden, width)
    mlp = linear(width, 4 * width) + linear(4 * width, width)
    double = 8 * linear(width, width) + 4 * 128 + 2 * mlp
    single = 3 * linear(width, width) + 2 * 128 + linear(width, 4 * width) + linear(5 * width, width)
    return embedded + modulation + 19 * double + 38 * single + linear(width, 64)


def auraflow() -> int:
    """4 double-stream and 32 single-stream blocks of 3072, no biases in them, text of 2048, 96x96 positions, 8
    registers."""
    width, hidden = 3072, 8192  # two thirds of 4 widths
    embedded = linear(4 * 4, width) + 96 * 96 * width + 2048 * width + 8 * width
    time = linear(256, width) + linear(width, width)
    mlp = 3 * width * hidden
    single = 4 * width * width + mlp + 6 * width * width
    return embedded + time + (4 * 2 + 32) * single + 2 * width * width + 4 * 4 * width


def flux2(double: int, single: int, width: int, text: int, guidance: bool) -> int:
    """No biases; one modulation for all blocks of a kind; MLPs of 3 widths with a gate; normed queries and keys."""
    embedded = 128 * width + text * width + (1 + guidance) * (256 * width + width * width)
    modulation = (2 * 6 + 3) * width * width
    mlp = 3 * 3 * width * width
    doubles = double * (8 * width * width + 4 * 128 + 2 * mlp)
    singles = single * (4 * width * width + mlp + 2 * 128)
    return embedded + modulation + doubles + singles + 2 * width * width + 128 * width


def ovis_image() -> int:
    """6 double-stream and 27 single-stream blocks of 3072, text of 2048; MLPs have a gate."""
    width = 3072
    time, text = linear(256, width) + linear(width, width), 2048 + linear(2048, width)
    mlp = linear(width, 8 * width) + linear(4 * width, width)
    double = 8 * linear(width, width) + 4 * 128 + 2 * mlp + 2 * linear(width, 6 * width)
    single = 3 * linear(width, width) + 2 * 128 + linear(width, 8 * width) + linear(5 * width, width)
    blocks = 6 * double + 27 * (single + linear(width, 3 * width))
    return linear(64, width) + time + text + blocks + linear(width, 2 * width) + linear(width, 64)


def lumina2() -> int:
    """2 + 26 blocks of 2304 and 2 of the text of 2304, without biases; 8 of 24 heads have keys; modulated from 1024."""
    width, modulated = 2304, 1024
    attention = 2 * width * width + 2 * width * width // 3 + 2 * 96
    block = attention + 3 * width * 4 * width + 4 * width  # with 4 norms
    time = linear(256, modulated) + linear(modulated, modulated)
    out = linear(modulated, width) + linear(width, 64)
    return (
        linear(64, width) + time + width + linear(width, width) + 30 * block + 28 * linear(modulated, 4 * width) + out
    )


def hidream() -> int:
    """16 double-stream and 32 single-stream blocks of 2560, text of 4096, projected for each block and once more; MLPs
    have 3 matrices, and two thirds of 4 times the width, up to a multiple of 256, shared experts half of that."""
    width = 2560
    wide, half = 3 * width * 6912, 3 * width * 3584
    attention = 4 * linear(width, width) + 2 * width
    experts = 4 * wide + half + 4 * width
    double = 2 * attention + experts + wide + linear(width, 12 * width)
    single = attention + experts + linear(width, 6 * width)
    time_and_pooled = linear(256, width) + linear(2048, width) + 2 * linear(width, width)
    text = 49 * 4096 * width
    out = linear(width, 64) + linear(width, 2 * width)
    return linear(64, width) + time_and_pooled + text + 16 * double + 32 * single + out


PUBLISHED = {
    "sd3": (sd3(24, 1536, 0, False), 2_028_328_000, (16, 128, 128), {TEXT: 4096, POOLED: 2048}),
    "sd35_medium": (sd3(24, 1536, 13, True), 2_243_171_520, (16, 128, 128), {TEXT: 4096, POOLED: 2048}),
    "sd35_large": (sd3(38, 2432, 0, True), 8_056_627_520, (16, 128, 128), {TEXT: 4096, POOLED: 2048}),
    "pixart": (pixart(False), 610_856_096, (4, 128, 128), {TEXT: 4096}),
    "pixart_alpha": (pixart(True), 611_349_152, (4, 128, 128), {TEXT: 4096}),
    "sana": (sana(20, 2240, 2240), 1_604_462_752, (32, 32, 32), {TEXT: 2304}),
    "sana_600m": (sana(28, 1152, 1152), 591_747_872, (32, 32, 32), {TEXT: 2304}),
    "flux": (flux(True), 11_901_408_320, (16, 128, 128), {TEXT: 4096, POOLED: 768}),
    "flux_schnell": (flux(False), 11_891_178_560, (16, 128, 128), {TEXT: 4096, POOLED: 768}),
    "auraflow": (auraflow(), 6_858_605_568, (4, 128, 128), {TEXT: 2048}),
    "flux2": (flux2(8, 48, 6144, 15360, True), 32_223_281_152, (128, 64, 64), {TEXT: 15360}),
    "chroma": (chroma(), 8_899_983_424, (16, 128, 128), {TEXT: 4096}),
    "hidream": (hidream(), 17_105_733_184, (16, 128, 128), {TEXT: 4096, LAYERS: 4096, POOLED: 2048}),
    "ovis_image": (ovis_image(), 7_370_449_728, (16, 128, 128), {TEXT: 2048}),
    "lumina2": (lumina2(), 2_609_769_152, (16, 128, 128), {TEXT: 2304}),
}


@pytest.mark.fast(3)
@pytest.mark.parametrize("option", PUBLISHED)
def test_published_architectures_have_their_sizes(option: str, compose: Any) -> None:
    """As a sum of their parts and as a number; and the usual tap is there."""
    from urepa.config.declared import declaration_of

    by_hand, parameters, shape, widths = PUBLISHED[option]
    declared = declaration_of(compose(f"backbone={option}")["backbone"])
    with torch.device("meta"):
        backbone = declared.build_without_weights(latent_shape=shape, num_classes=0, widths=widths)
    assert sum(p.numel() for p in backbone.parameters()) == parameters == by_hand
    declared.check(shape)
    declared.check_tap(declared.usual_tap)
    assert len(backbone.blocks) == declared.blocks
    assert declared.hub_files().keys() == {declared.weights}
