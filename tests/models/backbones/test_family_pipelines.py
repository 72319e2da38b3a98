"""Samplers and exports, compared with the families' own pipelines in diffusers; and weights that are read in the dtype
of frozen ones."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from families import ARCHITECTURES, LATENT, WIDTHS, backbone_of, pipeline_of, texts, write_family
from family_vaes import decoder_of, write_family_vae
from safetensors import safe_open
from text_folders import write_kolors
from torch import Tensor, nn

from urepa.core.conditions import Condition, Part
from urepa.core.part_names import POOLED, TEXT
from urepa.data.stages.vae import load_vae
from urepa.method.ddpm_sampling import image_noise, sample_images, scheduler_for
from urepa.method.objectives.ddpm_math import EpsilonMath
from urepa.models.backbones.backbone_sizes import LORA
from urepa.models.backbones.captioned_unet_net import CaptionedUNet, captioned_unet, captioned_unet_without_weights
from urepa.models.lora.lora_net import add_lora
from urepa.models.speed_switches import hold_frozen_in_bf16
from urepa.models.unet_weights import unet_from_folder

SCALED = EpsilonMath(0.00085, 0.012, "scaled_linear", 1000)
OBJECTIVES = {"sd15": SCALED, "sdxl": SCALED, "kolors": EpsilonMath(0.00085, 0.014, "scaled_linear", 1100)}
GUIDANCE, STEPS = 5.0, 4
CLOSE = 1e-5
# of values in [0,1]: 1/400 of a grey level, and less than the effect of any one adapted layer
PIXELS_CLOSE, GREY_LEVEL = 1e-5, 1 / 255
IMAGES, SEED = [(0, 0), (0, 1)], 5  # class and index, which address the noise
every = pytest.mark.parametrize("family", OBJECTIVES)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    made = {family: write_family(root / family, family) for family in OBJECTIVES}
    return {family: write_family_vae(folder, family, LATENT[0]) for family, folder in made.items()}


def noise() -> Tensor:
    return torch.stack([image_noise(SEED, *image, LATENT) for image in IMAGES])


def whole(family: str) -> Condition:
    """Texts with as many tokens each, because pipelines have no masks."""
    return texts(family, 6, 6)


def ours(backbone: CaptionedUNet, family: str, condition: Condition | None = None) -> Tensor:
    """x0 [B,C,H,W] as `urepa.generate` samples it."""
    given = whole(family) if condition is None else condition
    how: dict[str, Any] = {"sampler": "ddim", "steps": STEPS, "guidance": {"text": GUIDANCE}, "seed": SEED}
    with torch.no_grad():
        return sample_images(backbone.eval(), OBJECTIVES[family], IMAGES, LATENT, given, **how)


def theirs(pipe: Any, family: str, output_type: str = "latent") -> Tensor:
    """The output of the pipeline's __call__ from the same noise. The condition's null value is used for no caption."""
    given, without = whole(family), whole(family).null()
    embeds = {"prompt_embeds": given[TEXT].tokens_BLD, "negative_prompt_embeds": without[TEXT].tokens_BLD}
    if family != "sd15":
        pooled = {"pooled_prompt_embeds": given[POOLED], "negative_pooled_prompt_embeds": without[POOLED]}
        embeds |= {name: part.vector_BD for name, part in pooled.items()}
    size = {"height": 8 * LATENT[1], "width": 8 * LATENT[2]}
    settings = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "output_type": output_type}
    made: Tensor = pipe(latents=noise(), **embeds, **size, **settings).images
    return made


def base_pipeline(folders: dict[str, Path], family: str) -> Any:
    unet = backbone_of(folders[family], family).unet
    return pipeline_of(unet, family, scheduler_for(OBJECTIVES[family], "ddim"), load_vae(str(folders[family])))


@pytest.mark.slow
@every
def test_latents_are_those_of_the_familys_own_pipeline(folders: dict[str, Path], family: str) -> None:
    expected = theirs(base_pipeline(folders, family), family)
    found = ours(backbone_of(folders[family], family), family)
    assert float((found - expected).abs().max()) <= CLOSE
    assert float(expected.std()) > 0.1
    other = ours(backbone_of(folders[family], family), family, texts(family, 6, 6, seed=2))
    assert float((other - expected).abs().max()) > 100 * CLOSE


# --- adapters ---------------------------------------------------------------------------------------------------

KINDS: dict[str, dict[str, Any]] = {
    "lora": {"alpha": 2},
    "conv": {"alpha": 2, "targets": "attention_conv"},
    "rslora": {"alpha": 3, "use_rslora": True},
    "dora": {"alpha": 2, "use_dora": True},
    "dora_conv": {"alpha": 2, "use_dora": True, "targets": "attention_conv"},
}


def adapted(folder: Path, family: str, widths: dict[str, int] | None = None, **changes: Any) -> CaptionedUNet:
    """The backbone with adapters that all have an effect."""
    backbone = backbone_of(folder, family, **({} if widths is None else {"widths": widths}))
    torch.manual_seed(1)
    settings = {"rank": 4, "alpha": None, "dropout": 0.0, "targets": "attention", "blocks": "all"}
    add_lora(backbone, **(settings | changes))
    for name, parameter in backbone.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
        elif "magnitude" in name:
            parameter.data *= 1.1
    return backbone


ASKED = [*(("sdxl", kind) for kind in KINDS), ("kolors", "lora"), ("sd15", "dora")]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "kind"), ASKED)
def test_adapters_come_back_through_the_pipeline(
    folders: dict[str, Path], tmp_path: Path, compose: Callable[..., Any], family: str, kind: str
) -> None:
    """Its pixels are ours; and they come back into the backbone."""
    backbone, decode = adapted(folders[family], family, **KINDS[kind]), decoder_of(folders[family], compose)
    x0 = ours(backbone, family)
    expected = decode(x0)
    assert float((expected % 1 > 0).float().mean()) > 0.9  # few are clamped
    backbone.export(tmp_path)
    pipe = base_pipeline(folders, family)
    base = theirs(pipe, family, "pt")
    pipe.load_lora_weights(tmp_path)
    assert float((theirs(pipe, family, "pt") - expected).abs().max()) <= PIXELS_CLOSE
    assert float((base - expected).abs().max()) > GREY_LEVEL
    again = backbone_of(folders[family], family)
    again.load_adapters(tmp_path / LORA)
    assert torch.equal(ours(again, family), x0)
    with safe_open(tmp_path / LORA, "pt") as file:
        assert len(list(file.keys())) == sum(p.requires_grad for p in backbone.parameters())


@pytest.mark.slow
@pytest.mark.skipif(find_spec("sentencepiece") is None, reason="Kolors' tokenizer needs the package sentencepiece")
def test_adapters_of_kolors_make_the_pipelines_images_of_prompts(tmp_path: Path) -> None:
    """Pixels, for texts of 256 tokens encoded as in its pipeline, with and without the adapters."""
    from diffusers import AutoencoderKL
    from diffusers.pipelines.kolors.pipeline_kolors import KolorsPipeline

    encoder = write_kolors(tmp_path / "text", length=256)
    network = encoder.build()
    prompts = ["a red cat", "it is blue"]
    found = network.encode(network.tokenize([*prompts, ""]).inputs_BKL)
    given = Condition(
        {
            TEXT: Part.of(found.tokens_BLD[:2], found.mask_BL[:2], found.tokens_BLD[2], found.mask_BL[2]),
            POOLED: Part.of(found.pooled_BP[:2], None, found.pooled_BP[2]),
        }
    )
    widths = {TEXT: encoder.width, POOLED: encoder.width}
    added = 6 * 8 + encoder.width
    folder = write_family(
        tmp_path / "unet", "kolors", encoder_hid_dim=encoder.width, projection_class_embeddings_input_dim=added
    )
    backbone = adapted(folder, "kolors", widths=widths, alpha=2)
    backbone.export(tmp_path / "adapters")
    torch.manual_seed(2)
    blocks: Any = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae: Any = AutoencoderKL(norm_num_groups=4, block_out_channels=(8,) * 4, **blocks).eval()
    tokenizer, glm = network._loaded[0]
    unet, scheduler = backbone_of(folder, "kolors", widths=widths).unet, scheduler_for(OBJECTIVES["kolors"], "ddim")
    pipe: Any = KolorsPipeline(vae, glm, tokenizer, unet, scheduler)
    pipe.set_progress_bar_config(disable=True)

    def images() -> Tensor:
        size = {"height": 8 * LATENT[1], "width": 8 * LATENT[2], "num_inference_steps": STEPS}
        made = pipe(prompts, latents=noise(), guidance_scale=GUIDANCE, output_type="pt", **size).images
        return torch.as_tensor(made)

    base = images()
    pipe.load_lora_weights(tmp_path / "adapters")
    with torch.no_grad():
        decoded = vae.decode(ours(backbone, "kolors", given) / vae.config.scaling_factor).sample
    expected = (decoded / 2 + 0.5).clamp(0, 1)
    assert expected.shape == (2, 3, 8 * LATENT[1], 8 * LATENT[2])
    assert float((images() - expected).abs().max()) <= CLOSE
    assert float((base - expected).abs().max()) > 100 * CLOSE


@pytest.mark.slow
def test_kinds_of_adapters_differ(folders: dict[str, Path]) -> None:
    """With the same A and B: rsLoRA's scale is 3/√4 instead of 3/4, and DoRA's rows have their own lengths."""
    found = {kind: ours(adapted(folders["sdxl"], "sdxl", **(KINDS[kind] | {"alpha": 3})), "sdxl") for kind in KINDS}
    names = ("lora", "rslora", "dora")
    assert all(float((found[a] - found[b]).abs().max()) > 100 * CLOSE for a in names for b in names if a < b)
    scaled = ours(adapted(folders["sdxl"], "sdxl", alpha=6), "sdxl")
    assert float((found["rslora"] - scaled).abs().max()) <= CLOSE


# --- types of frozen weights --------------------------------------------------------------------------------------


def held(backbone: CaptionedUNet, **changes: Any) -> dict[str, Tensor]:
    """Its parameters as training stores them, by name."""
    torch.manual_seed(3)
    settings: dict[str, Any] = {"rank": 4, "alpha": None, "dropout": 0.0, "targets": "attention_conv", "blocks": "all"}
    add_lora(backbone, **(settings | changes))
    hold_frozen_in_bf16(backbone)
    return dict(backbone.named_parameters())


@pytest.mark.fast(1)
@every
@pytest.mark.parametrize("shard", ["5GB", "200KB"])
def test_weights_read_in_bf16_are_those_that_were_cast(tmp_path: Path, family: str, shard: str) -> None:
    """Frozen ones, norms in fp32, and the adapters' initial values, which are not rounded."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    UNet2DConditionModel(**ARCHITECTURES[family]).save_pretrained(tmp_path / "unet", max_shard_size=shard)
    read = backbone_of(tmp_path, family, dtype=torch.bfloat16)
    types = {name: p.dtype for name, p in read.named_parameters()}
    normed = [name for name, m in read.named_modules() if isinstance(m, nn.GroupNorm | nn.LayerNorm)]
    norms = {f"{name}.{own}" for name in normed for own in ("weight", "bias")}
    assert {name for name, dtype in types.items() if dtype == torch.float32} == norms
    assert set(types.values()) == {torch.float32, torch.bfloat16}
    straight, cast = held(read), held(backbone_of(tmp_path, family))
    assert straight.keys() == cast.keys()
    assert all(straight[n].dtype == cast[n].dtype and torch.equal(straight[n], cast[n]) for n in cast)
    assert all(p.data_ptr() % 64 == 0 for p in straight.values() if p.numel() > 16)
    a = [p for n, p in straight.items() if "lora_A" in n]
    assert any(not torch.equal(p, p.bfloat16().float()) for p in a)


def test_the_same_files_are_read_as_by_diffusers(folders: dict[str, Path]) -> None:
    from diffusers import UNet2DConditionModel

    ours_ = unet_from_folder(folders["sdxl"] / "unet", "sdxl")
    theirs_ = UNet2DConditionModel.from_pretrained(folders["sdxl"] / "unet")
    assert all(torch.equal(p, q) for p, q in zip(ours_.parameters(), theirs_.parameters(), strict=True))
    assert not ours_.training
    kept = {k: v for k, v in ours_.config.items() if not k.startswith("_")}
    assert kept == {k: v for k, v in theirs_.config.items() if not k.startswith("_")}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_adapters_train_beside_weights_in_bf16(folders: dict[str, Path], kind: str) -> None:
    """Under autocast, close to the step in fp32."""
    losses = {}
    for dtype in (torch.float32, torch.bfloat16):
        backbone = captioned_unet(
            *(str(folders["sdxl"]), "sdxl", False), latent_shape=LATENT, widths=WIDTHS["sdxl"], dtype=dtype
        )
        torch.manual_seed(3)
        settings: dict[str, Any] = {"rank": 4, "dropout": 0.0, "targets": "attention", "blocks": "mid"}
        add_lora(backbone, **(settings | KINDS[kind]))
        if dtype == torch.bfloat16:
            hold_frozen_in_bf16(backbone)
        trained = [p for p in backbone.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-2)
        for _ in range(5):
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                out = backbone(noise(), torch.tensor([100, 900]), whole("sdxl")).prediction_RCHW
            loss = (out.float() - noise()).pow(2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.setdefault(dtype, []).append(float(loss.detach()))
        assert all(p.grad is not None and p.dtype == torch.float32 for p in trained)
    exact, rounded = losses[torch.float32], losses[torch.bfloat16]
    assert exact[-1] < exact[0]
    assert rounded == pytest.approx(exact, rel=0.01)


# --- published sizes ------------------------------------------------------------------------------------------------

# widths, parameters, and those of adapters in the middle block: LoRA and DoRA
PUBLISHED = {
    "sd15": ({TEXT: 768, POOLED: 768}, 859_520_964, 155_648, 165_888),
    "sdxl": ({TEXT: 2048, POOLED: 1280}, 2_567_463_684, 1_761_280, 1_863_680),
    "kolors": ({TEXT: 4096, POOLED: 4096}, 2_579_458_820, 1_761_280, 1_863_680),
}


@pytest.mark.slow
@every
def test_published_architectures_have_their_sizes(family: str) -> None:
    """Parameters and adapters, and the middle block's grid at 1024 px, or at 512 px for SD-1.5."""
    widths, parameters, *adapters = PUBLISHED[family]
    with torch.device("meta"):
        backbone = captioned_unet_without_weights("random", family, False, latent_shape=(4, 128, 128), widths=widths)
        assert sum(p.numel() for p in backbone.parameters()) == parameters
        assert [trained(widths, family, use_dora) for use_dora in (False, True)] == adapters
        side = 64 if family == "sd15" else 128
        condition = Condition({name: part.map(lambda x: x.to("meta")) for name, part in texts_of(widths).parts.items()})
        x_t, t_B = torch.empty(1, 4, side, side), torch.zeros(1, dtype=torch.long)
        none = torch.zeros(0, dtype=torch.long)
        denoised = backbone(x_t, t_B, condition, ("mid",), none)
    grid = (8, 8) if family == "sd15" else (32, 32)
    assert (denoised.features["mid"].grid, denoised.features["mid"].x_BND.shape[2]) == (grid, 1280)


def trained(widths: dict[str, int], family: str, use_dora: bool) -> int:
    backbone = captioned_unet_without_weights("random", family, False, latent_shape=(4, 8, 8), widths=widths)
    add_lora(backbone, 8, None, 0.0, "attention", "mid", use_dora=use_dora)
    return sum(p.numel() for p in backbone.parameters() if p.requires_grad)


def texts_of(widths: dict[str, int]) -> Condition:
    from urepa.core.conditions import Part

    tokens = Part.of(torch.zeros(1, 7, widths[TEXT]), torch.ones(1, 7, dtype=torch.bool))
    return Condition({TEXT: tokens, POOLED: Part.of(torch.zeros(1, widths[POOLED]))})


@pytest.mark.slow
def test_a_training_reads_frozen_weights_in_their_type(folders: dict[str, Path], compose: Callable[..., Any]) -> None:
    """Evaluation and image generation have them in fp32."""
    from urepa.training.assembly import build_backbone, build_backbone_to_train

    track = type("Track", (), {"latent_shape": LATENT, "num_classes": 2, "condition_widths": WIDTHS["sdxl"]})
    backbone = ("backbone=sdxl", f"backbone.weights={folders['sdxl']}")
    precision = ("trainer.precision=bf16", "trainer.frozen=bf16")

    def types(build: Any, *overrides: str) -> set[torch.dtype]:
        return {p.dtype for p in build(compose(*backbone, *overrides), track).parameters()}

    assert types(build_backbone_to_train, "lora=mid_attention", *precision) == {torch.float32, torch.bfloat16}
    for build, overrides in (
        (build_backbone, ("lora=mid_attention", *precision)),
        (build_backbone_to_train, precision),
        (build_backbone_to_train, ("lora=mid_attention",)),
    ):
        assert types(build, *overrides) == {torch.float32}
