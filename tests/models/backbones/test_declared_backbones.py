"""Declarations of backbones, which need no torch, agree with what they build: each is built at a small size and checked
for everything that the protocols require."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from class_ids import of_ids
from tiny_flextok import SMALL as SMALL_FLEXTOK
from tiny_sit import SMALL as SMALL_SIT
from transformers_tiny import CASES as TINY

from urepa.config.declared import declaration_of
from urepa.config.own_package import _members
from urepa.config.parts import KINDS, PACKAGES, networks
from urepa.core.backbone_protocols import Backbone, BackboneNetwork, WeightsKind
from urepa.core.conditions import Condition, Part
from urepa.core.descriptions import BackboneFacts, CardFacts
from urepa.core.errors import UserError
from urepa.core.part_names import CLS, IMAGE, KEEP, LAYERS, PATCHES, POOLED, TEXT
from urepa.core.types import no_rows
from urepa.models.diffusers_files import hub_files
from urepa.models.unet_families import FAMILIES, HUB_FILES
from urepa.training.assembly import load_modules

LATENT, CLASSES = (4, 8, 8), 5
SMALL_SD = {"sample_size": 8, "cross_attention_dim": 16, "attention_head_dim": 2, "block_out_channels": (32, 64)}
SMALL_SD |= {
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}


SMALL_XL = {
    **{"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "transformer_layers_per_block": (1, 2)},
    **{"use_linear_projection": True, "projection_class_embeddings_input_dim": 6 * 8 + 20},
}
SMALL_KOLORS = {"encoder_hid_dim": 24, "encoder_hid_dim_type": "text_proj"}
ARCHITECTURES = {"sd15": SMALL_SD, "sdxl": SMALL_SD | SMALL_XL, "kolors": SMALL_SD | SMALL_XL | SMALL_KOLORS}


@dataclass(frozen=True)
class Case:
    """The settings of a small one, and its expected answers."""

    settings: dict[str, Any]
    taps: tuple[str, ...]
    noun: str
    kind: WeightsKind
    card: str
    exported: set[str]
    base: str | None = None
    hub: dict[str, list[str]] = field(default_factory=dict)  # for weights of `named`
    named: str = "owner/name"
    widths: dict[str, int] | None = None  # of the parts of its condition; None: a class id
    latent: tuple[int, int, int] = LATENT

    @property
    def known(self) -> dict[str, Any]:
        """The values with which it is built."""
        return {"latent_shape": self.latent, "num_classes": CLASSES} | ({"widths": self.widths} if self.widths else {})

    @property
    def condition(self) -> Condition:
        """A condition of two samples, one of them withheld."""
        if self.widths is None:
            return of_ids(torch.tensor([0, CLASSES]), CLASSES)
        if PATCHES in self.widths:
            text = Part.of(torch.randn(2, 3, self.widths[TEXT]), torch.ones(2, 3, dtype=torch.bool))
            patches = Part.of_image(torch.randn(2, 6, self.widths[PATCHES]), (2, 3))
            whole = Condition({TEXT: text, CLS: Part.of(torch.randn(2, self.widths[CLS])), PATCHES: patches})
            return whole.drop({IMAGE: torch.tensor([False, True])})
        if IMAGE in self.widths:
            pixels = Part.of(torch.randn(2, LATENT[1] * LATENT[2], LATENT[0]), torch.ones(2, 64, dtype=torch.bool))
            whole = Condition({IMAGE: pixels, KEEP: Part.of(torch.rand(2, 1))})
            return whole.drop({IMAGE: torch.tensor([False, True])})
        tokens = Part.of(torch.randn(2, 3, self.widths[TEXT]), torch.ones(2, 3, dtype=torch.bool))
        pooled = {POOLED: Part.of(torch.randn(2, self.widths[POOLED]))} if POOLED in self.widths else {}
        layers = {}
        if LAYERS in self.widths:
            stacked = max(self.settings["llama_layers"]) + 1
            layers = {LAYERS: Part.of(torch.randn(2, stacked, 3, self.widths[LAYERS]), tokens.mask_BL)}
        whole = Condition({TEXT: tokens, **layers, **pooled})
        return whole.drop({TEXT: torch.tensor([False, True])})


SMALL_NANODIT = {"patch": 2, "depth": 2, "width": 16, "heads": 2, "cls": "both", "cls_with_time": True}
SMALL_NANODIT |= {"patches": True, "patch_positions": True, "gradient_checkpointing": False}
SMALL_UNET = {
    "block_out_channels": [32, 64],
    "attention": [False, True],
    "layers_per_block": 1,
    "cross_attention_dim": 16,
    "head_dim": 32,
}
SMALL_SIZES = {name: value for name, value in SMALL_UNET.items() if name != "cross_attention_dim"}
OF_FILES = {"weights": "random", "gradient_checkpointing": True}
UNET_TAPS = ("enc_last", "mid", "dec_first")
WHOLE = {"unet/config.json", "unet/diffusion_pytorch_model.safetensors"}
CASES = {
    "flextok": Case(
        SMALL_FLEXTOK,
        ("decoder_block_0", "decoder_block_1", "decoder_block_2"),
        "tokenizer",
        WeightsKind.backbone,
        "python -m urepa.train +experiment=mine backbone.weights=FOLDER/model.safetensors",
        {"model.safetensors"},
        named="flextok.safetensors",
        widths={IMAGE: 4, KEEP: 1},
    ),
    "text_unet": Case(
        SMALL_UNET,
        UNET_TAPS,
        "U-Net",
        WeightsKind.unet,
        "class_labels=vector, encoder_attention_mask=mask",
        WHOLE | {"embedding.safetensors"},
        widths={TEXT: 24, POOLED: 20},
    ),
    "tiny_unet": Case(
        SMALL_UNET,
        UNET_TAPS,
        "U-Net",
        WeightsKind.unet,
        "x = torch.randn(1, 4, 8, 8)",
        WHOLE | {"embedding.safetensors"},
    ),
    "sd15": Case(
        {"weights": "random", "prompts": "", "gradient_checkpointing": True},
        UNET_TAPS,
        "U-Net",
        WeightsKind.backbone,
        "StableDiffusionPipeline.from_pretrained(",
        WHOLE,
        hub={"owner/name": HUB_FILES},
    ),
    "sd15_text": Case(
        OF_FILES,
        UNET_TAPS,
        "U-Net",
        WeightsKind.backbone,
        "pipe = StableDiffusionPipeline.from_pretrained(",
        WHOLE,
        hub={"owner/name": HUB_FILES},
        widths={TEXT: 16, POOLED: 20},  # it does not look at the second
    ),
    "sdxl": Case(
        OF_FILES,
        UNET_TAPS,
        "U-Net",
        WeightsKind.backbone,
        "pipe = StableDiffusionXLPipeline.from_pretrained(",
        WHOLE,
        hub={"owner/name": HUB_FILES},
        widths={TEXT: 16, POOLED: 20},
    ),
    "kolors": Case(
        OF_FILES,
        UNET_TAPS,
        "U-Net",
        WeightsKind.backbone,
        "guidance_scale=5.0, height=64, width=64",
        WHOLE,
        hub={"owner/name": HUB_FILES},
        widths={TEXT: 24, POOLED: 20},
    ),
    **{
        name: Case(
            OF_FILES | SMALL_SIZES,
            UNET_TAPS,
            "U-Net",
            WeightsKind.backbone,
            "height=64, width=64",
            WHOLE,
            widths={TEXT: 16, POOLED: 20},
        )
        for name in ("sd15_text_tiny", "sdxl_tiny", "kolors_tiny")
    },
    **{
        name: Case(
            {**TINY[name].settings, **OF_FILES},
            ("block_0", "block_2"),
            "transformer",
            WeightsKind.backbone,
            f"pipe = {TINY[name].pipeline}.from_pretrained(",
            {f"transformer/{file}" for file in ("config.json", "diffusion_pytorch_model.safetensors")},
            hub={"owner/name": hub_files("transformer")},
            widths=TINY[name].widths,
            latent=TINY[name].latent,
        )
        for name in sorted(TINY.keys() & KINDS["backbone"].keys())
    },
    "nanodit": Case(
        SMALL_NANODIT,
        ("block_0", "block_1"),
        "transformer",
        WeightsKind.unet,
        "python -m urepa.generate checkpoint=FOLDER +experiment=mine prompt=TEXT image=FILE guidance_text=3 "
        "guidance_image=2",
        {"model.safetensors"},
        widths={TEXT: 12, CLS: 10, PATCHES: 6},
    ),
    "sit": Case(
        SMALL_SIT,
        ("block_0", "block_1", "block_2"),
        "transformer",
        WeightsKind.backbone,
        "python -m urepa.generate checkpoint=FOLDER +experiment=mine guidance=1.8",
        {"model.safetensors"},
        hub={"owner/name@v1": ["sit/xl.pt"]},
        named="owner/name@v1/sit/xl.pt",
    ),
}


def settings_of(name: str, folder: Path) -> dict[str, Any]:
    """The settings, with the files that they need."""
    cls = KINDS["backbone"][name]
    settings = {"_target_": cls._target_, **CASES[name].settings}  # type: ignore[attr-defined]
    return settings | declaration_of(settings).write_stand_ins(folder, CLASSES)


@pytest.fixture
def case(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Case, Any, Path]:
    for name, architecture in ARCHITECTURES.items():
        monkeypatch.setitem(FAMILIES, name, replace(FAMILIES[name], architecture=architecture))
    for name in TINY.keys() & KINDS["backbone"].keys():
        monkeypatch.setattr(KINDS["backbone"][name], "published", TINY[name].fixed)
    return CASES[request.param], declaration_of(settings_of(request.param, tmp_path)), tmp_path


every = pytest.mark.parametrize("case", CASES, indirect=True)


def test_every_backbone_has_a_case() -> None:
    assert CASES.keys() == KINDS["backbone"].keys()


@pytest.mark.fast(3)
@every
def test_what_is_declared_is_what_is_built(case: tuple[Case, Any, Path]) -> None:
    expected, declared, _ = case
    assert not {name for name in _members(Backbone) if not hasattr(declared, name)}
    assert (declared.noun, declared.base) == (expected.noun, expected.base)
    assert declared.family in ("tiny_unet", "sd15", "sdxl", "kolors", "sit", "flextok", "nanodit", *TINY)
    declared.check(expected.latent)
    declared.check_files()
    assert declared.hub_files() == {}
    torch.manual_seed(0)
    network = declared.build(**expected.known)
    assert not {name for name in _members(BackboneNetwork) if not hasattr(network, name)}
    assert declared.is_diffusers_unet == hasattr(network, "unet")
    for tap in expected.taps:
        declared.check_tap(tap)
        assert network.tap_width(tap) > 0
        assert network.trains_before(tap)
    for ask in (declared.check_tap, network.tap_width):
        with pytest.raises(UserError, match="^this backbone has no tap 'midd'; it has "):
            ask("midd")
    torch.manual_seed(0)
    again = declared.build_without_weights(**expected.known)
    assert {n: p.shape for n, p in again.named_parameters()} == {n: p.shape for n, p in network.named_parameters()}
    assert all(torch.equal(p, q) for p, q in zip(again.parameters(), network.parameters(), strict=True))
    with torch.device("meta"):
        meta = declared.build_without_weights(**expected.known)
    assert all(p.is_meta for p in meta.parameters())


@every
def test_the_network_is_what_the_protocol_says(case: tuple[Case, Any, Path]) -> None:
    expected, declared, _ = case
    torch.manual_seed(0)
    network = declared.build(**expected.known)
    inputs = (torch.randn(2, *expected.latent), torch.tensor([0.25, 0.5]), expected.condition)
    denoised = network(*inputs, taps=expected.taps)
    assert denoised.prediction_RCHW.shape == (2, *expected.latent)
    for tap in expected.taps:
        tokens = denoised.features[tap]
        assert tokens.x_BND.shape == (2, tokens.grid[0] * tokens.grid[1], network.tap_width(tap))
    none = network(*inputs, taps=expected.taps[:1], rows_R=no_rows(torch.device("cpu")))
    assert none.prediction_RCHW.shape == (0, *expected.latent)
    assert list(none.features) == list(expected.taps[:1])
    assert {network.stage_of(name) for name, _ in network.named_parameters()} <= set(network.stages)
    assert set(network.regions) & {type(module).__name__ for module in network.modules()}
    network.freeze_after(expected.taps[:1])
    frozen = {name for name, p in network.named_parameters() if not p.requires_grad}
    assert frozen
    assert network.trains_before(expected.taps[0])
    network.requires_grad_(False)
    assert not any(network.trains_before(tap) for tap in expected.taps)


@every
def test_a_backbone_finds_its_own_exports(case: tuple[Case, Any, Path]) -> None:
    expected, declared, folder = case
    network = declared.build(**expected.known)
    (folder / "out").mkdir()
    network.export(folder / "out")
    files = {str(p.relative_to(folder / "out")) for p in (folder / "out").rglob("*") if p.is_file()}
    assert files == expected.exported
    found = declared.find_weights(folder / "out")
    assert found.kind == expected.kind
    assert {str(file.relative_to(folder / "out")) for file in found.files} == expected.exported
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match=r"^checkpoint=.*empty has n"):
        declared.find_weights(folder / "empty")
    facts = CardFacts(tuple(sorted(files)), "+experiment=mine", expected.latent, 1000)
    assert expected.card in declared.model_card(facts)
    assert "urepa" in declared.hub_metadata()["tags"]


@every
def test_a_backbone_describes_itself(case: tuple[Case, Any, Path]) -> None:
    expected, declared, _ = case
    (text,) = declared.description(BackboneFacts(expected.latent, CLASSES, False))
    assert "×".join(map(str, expected.latent)) in text
    assert ", with random initial weights" in text
    (replaced,) = declared.description(BackboneFacts(expected.latent, CLASSES, True))
    assert replaced == text.replace(", with random initial weights", "")


@pytest.mark.parametrize(
    "name", ["sd15", "sd15_text", "sdxl", "kolors", "sit", "flextok", *sorted(TINY.keys() & KINDS["backbone"].keys())]
)
def test_weights_have_a_name(name: str, tmp_path: Path) -> None:
    expected = CASES[name]
    declared = declaration_of(settings_of(name, tmp_path) | {"weights": expected.named})
    assert declared.base == expected.named
    assert declared.hub_files() == expected.hub
    (text,) = declared.description(BackboneFacts(LATENT, CLASSES, True))
    assert f", with the weights of {expected.named}" in text


def test_missing_files_are_reported(tmp_path: Path) -> None:
    declared = declaration_of(settings_of("sd15", tmp_path) | {"prompts": str(tmp_path / "lost.pt")})
    with pytest.raises(UserError, match=r"^there are no prompt embeddings at .*lost.pt"):
        declared.check_files()


def test_a_transformers_patches_are_compared_with_the_teachers_tokens(tmp_path: Path) -> None:
    declared = declaration_of(settings_of("sit", tmp_path))
    declared.check_grids(LATENT, {"teacher.grid": [4, 4]})
    with pytest.raises(
        UserError, match=r"^this SiT has 4x4 patches and the teacher 4x5 tokens.*give teacher.teachers.b.grid=\[4, 4\]"
    ):
        declared.check_grids(LATENT, {"teacher.teachers.a.grid": [4, 4], "teacher.teachers.b.grid": [4, 5]})


@pytest.mark.slow
def test_declarations_load_without_torch_and_a_run_loads_what_they_build_with(
    compose: Callable[..., dict[str, Any]],
) -> None:
    code = (
        "import sys; from urepa.config.parts import KINDS; assert KINDS['backbone'] and KINDS['lora'] "
        "and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    load_modules(compose())
    for kind in ("backbone", "lora"):
        assert networks(PACKAGES[kind])
        assert all(name in sys.modules for name in networks(PACKAGES[kind]))
