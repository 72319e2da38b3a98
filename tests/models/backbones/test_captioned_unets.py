"""SD-1.5 with captions, SDXL and Kolors: diffusers' own prediction, the effect of each part of a condition, and
decreasing losses.

Shapes: B batch, L positions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from captioned import overrides
from families import ARCHITECTURES, LATENT, WIDTHS, added_to, backbone_of, texts, write_family
from torch import Tensor

from urepa.core.conditions import Condition, Part
from urepa.core.errors import UserError
from urepa.core.part_names import CLASS, POOLED, TEXT
from urepa.core.types import Batch, Tokens, no_rows
from urepa.method.heads.conv_net import ConvHead
from urepa.method.losses.urepa_loss import URepaLoss
from urepa.method.objectives.ddpm_math import EpsilonMath
from urepa.method.schedules.constant import Constant
from urepa.method.training_step import AlignedModel, step_terms
from urepa.models.backbones.captioned_unet_net import CaptionedUNet, captioned_unet
from urepa.models.lora.lora_net import add_lora
from urepa.training.checks.sizes import check_condition, check_shapes

IDS = [64, 128, 0, 0, 64, 128]  # of LATENT
FAMILIES = ("sd15", "sdxl", "kolors")
every = pytest.mark.parametrize("family", FAMILIES)
TIMES = torch.tensor([3, 900, 500])
SQUARE = (4, 8, 8)


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CaptionedUNet]:
    folder = tmp_path_factory.mktemp("families")
    return {family: backbone_of(write_family(folder / family, family), family) for family in FAMILIES}


def noise(count: int = 3) -> Tensor:
    return torch.randn(count, *LATENT, generator=torch.Generator().manual_seed(7))


def theirs(unet: Any, family: str, condition: Condition, ids: list[int], x_t: Tensor) -> Tensor:
    """diffusers' own prediction."""
    text = condition[TEXT]
    with torch.no_grad():
        out: Tensor = unet(
            *(x_t, TIMES[: len(x_t)], text.tokens_BLD),
            encoder_attention_mask=text.mask_BL,
            **added_to(family, condition, ids),
        ).sample
    return out


def ours(backbone: CaptionedUNet, condition: Condition, x_t: Tensor) -> Tensor:
    with torch.no_grad():
        return backbone(x_t, TIMES[: len(x_t)], condition).prediction_RCHW


@pytest.mark.fast(3)
@every
@pytest.mark.parametrize("taps", [(), ("mid",), ("mid", "enc_last", "dec_first")])
def test_the_prediction_is_diffusers_own_bit_for_bit(backbones: Any, family: str, taps: tuple[str, ...]) -> None:
    condition = texts(family, 5, 3, 1).drop({TEXT: torch.tensor([False, False, True])})
    with torch.no_grad():
        denoised = backbones[family](noise(), TIMES, condition, taps)
    assert torch.equal(denoised.prediction_RCHW, theirs(backbones[family].unet, family, condition, IDS, noise()))
    grids = {"enc_last": (2, 4), "mid": (2, 4), "dec_first": (4, 8)}
    assert {tap: f.grid for tap, f in denoised.features.items()} == {tap: grids[tap] for tap in taps}


@every
def test_an_uneven_latent_is_diffusers_own_too(backbones: Any, family: str) -> None:
    x_t = torch.randn(1, 4, 9, 7, generator=torch.Generator().manual_seed(8))
    condition = texts(family, 4)
    expected = theirs(backbones[family].unet, family, condition, [72, 56, 0, 0, 72, 56], x_t)
    assert torch.equal(ours(backbones[family], condition, x_t), expected)


def changed(before: Condition, part: str, change: Callable[[Tensor], Tensor]) -> Condition:
    own = before[part]
    return Condition(dict(before.parts) | {part: replace(own, value=change(own.value.clone()))})


def rounding(backbone: CaptionedUNet, condition: Condition) -> float:
    """The largest difference between a prediction in fp32 and in fp64."""
    exact = CaptionedUNet(backbone.unet, backbone.adapter_files).double()
    try:
        parts = {n: replace(p, value=p.value.double()) for n, p in condition.parts.items()}
        with torch.no_grad():
            found = exact(noise().double(), TIMES, Condition(parts)).prediction_RCHW
    finally:
        exact.float()
    return float((found - ours(backbone, condition, noise()).double()).abs().max())


@pytest.mark.fast(1)
@every
def test_given_tokens_affect_the_prediction_and_masked_ones_do_not(backbones: Any, family: str) -> None:
    backbone, condition = backbones[family], texts(family, 5, 3, 1)
    least, before = 100 * rounding(backbone, condition), ours(backbone, condition, noise())

    def moved(other: Condition) -> list[float]:
        return [float(d) for d in (ours(backbone, other, noise()) - before).abs().amax((1, 2, 3))]

    def at(row: int, position: int) -> Callable[[Tensor], Tensor]:
        def change(tokens_BLD: Tensor) -> Tensor:
            tokens_BLD[row, position] += 1.0
            return tokens_BLD

        return change

    first, second, third = moved(changed(condition, TEXT, at(1, 2)))
    assert second > least
    assert first == third == 0
    assert moved(changed(condition, TEXT, at(1, 3))) == [0, 0, 0]  # the mask ends before it
    by_vector = moved(changed(condition, POOLED, lambda vector_BP: vector_BP + 1.0))
    assert all(d == 0 if family == "sd15" else d > least for d in by_vector)
    for place in range(6) if family != "sd15" else ():
        ids = [value + 8 * (place == i) for i, value in enumerate(IDS)]
        other = theirs(backbone.unet, family, condition, ids, noise())
        assert float((other - before).abs().max()) > least, place


@every
def test_without_a_caption_the_conditions_null_value_is_used(backbones: Any, family: str) -> None:
    """Zeros as stored, if the condition is withheld."""
    zeros = texts(family, 2, 2, 2)
    for part in (TEXT, POOLED):
        zeros = changed(zeros, part, torch.zeros_like)
    null = texts(family, 2, 2, 2).null()
    assert torch.equal(ours(backbones[family], null, noise()), ours(backbones[family], zeros, noise()))


@every
def test_rows_and_early_stops_are_those_of_the_whole(backbones: Any, family: str) -> None:
    backbone, condition = backbones[family], texts(family, 5, 3, 1)
    with torch.no_grad():
        whole = backbone(noise(), TIMES, condition, ("mid",))
        some = backbone(noise(), TIMES, condition, ("mid",), torch.tensor([2, 0]))
        none = backbone(noise(), TIMES, condition, ("mid",), no_rows(torch.device("cpu")))
    torch.testing.assert_close(some.prediction_RCHW, whole.prediction_RCHW[[2, 0]], rtol=1e-5, atol=1e-6)
    assert torch.equal(none.features["mid"].x_BND, whole.features["mid"].x_BND)


# --- training ---------------------------------------------------------------------------------------------------


def losses(family: str, seed: int, lam: float, blocks: str | None) -> list[dict[str, float]]:
    """The loss terms of 20 steps on one batch with one noise and time; the head does not train."""
    torch.manual_seed(seed)
    backbone = captioned_unet("random", family, False, latent_shape=SQUARE, widths=WIDTHS[family])
    if blocks is not None:
        add_lora(backbone, 4, None, 0.0, "attention", blocks)
    head = ConvHead(2, "after", in_width=32, out_width=6).requires_grad_(False)
    model = AlignedModel(backbone, {"mid": head})
    settings = URepaLoss(
        lambda_max=lam,
        warmup_steps=0,
        manifold_weight=0.0,
        level="sample",
        taps={"mid": 1.0},
        spike_threshold=0.1,
        diffusion_fraction=1.0,
    )
    loss = settings.build(schedule=Constant(), max_steps=20)
    target = Tokens(F.normalize(torch.randn(3, 4, 6), dim=-1), (2, 2))
    x0, eps = torch.randn(2, 3, *SQUARE)
    batch = Batch(list("abc"), x0, eps, TIMES, texts(family, 5, 3, 1), {"": target})
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    objective, rows = EpsilonMath(0.00085, 0.012, "scaled_linear", 1000), []
    for step in range(20):
        terms, _ = step_terms(model, objective, loss, batch, step, lambda x_BD: x_BD)
        optimizer.zero_grad()
        terms.total.backward()
        optimizer.step()
        rows.append({name: float(value) for name, value in terms.means().items()})
    return rows


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights have the small architectures."""
    from urepa.models.unet_families import FAMILIES as PUBLISHED

    for family, architecture in ARCHITECTURES.items():
        monkeypatch.setitem(PUBLISHED, family, replace(PUBLISHED[family], architecture=architecture))


@pytest.mark.slow
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("family", "seed"), [("sdxl", 0), ("sdxl", 1), ("sdxl", 2), ("sd15", 0), ("kolors", 0)])
def test_twenty_steps_lower_each_trained_term(family: str, seed: int) -> None:
    """Each term alone, with the whole U-Net."""
    rows = losses(family, seed, 0.0, None)
    assert rows[-1]["diffusion"] < 0.9 * rows[0]["diffusion"]
    rows = losses(family, seed, 100.0, None)
    assert rows[-1]["token"] < 0.9 * rows[0]["token"]


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_adapters_learn_both() -> None:
    for lam, term, blocks in ((0.0, "diffusion", "all"), (100.0, "token", "mid")):
        rows = losses("sdxl", 0, lam, blocks)
        assert rows[-1][term] < rows[0][term] - 0.005, term


# --- what it refuses ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("there", "family", "said"),
    [
        (
            "sdxl",
            "sd15",
            "with added conditions \\(text_time\\), as SDXL's is; backbone=sd15 or sd15_text takes that of ",
        ),
        ("sd15", "sdxl", "without added conditions, as SD-1.5's is; backbone=sdxl takes that of SDXL, and "),
        ("kolors", "sdxl", "a projection of its text, as Kolors' is; backbone=sdxl takes that of SDXL, and "),
        ("sdxl", "kolors", "as SDXL's is; backbone=kolors takes that of Kolors, and backbone=sdxl this one$"),
    ],
)
def test_another_familys_weights_are_refused(tmp_path: Path, there: str, family: str, said: str) -> None:
    folder = write_family(tmp_path, there)
    with pytest.raises(UserError, match=said) as caught:
        backbone_of(folder, family)
    assert "\n" not in str(caught.value)


@pytest.mark.fast(1)
@pytest.mark.parametrize(
    ("family", "widths", "said"),
    [
        ("sd15", {TEXT: 31}, "takes text of width 32; data.text_encoder gives 31: choose .* SD-1.5 was trained with"),
        ("sdxl", {POOLED: 23}, "takes a pooled vector of text of width 24; data.text_encoder gives 23"),
        ("kolors", {TEXT: 32}, "takes text of width 40; data.text_encoder gives 32"),
    ],
)
def test_text_of_other_widths_is_refused(tmp_path: Path, family: str, widths: dict[str, int], said: str) -> None:
    folder = write_family(tmp_path, family)
    with pytest.raises(UserError, match=said):
        backbone_of(folder, family, widths=WIDTHS[family] | widths)
    with pytest.raises(UserError, match="takes 4 latent channels; the track has 12"):
        backbone_of(folder, family, latent_shape=(12, 8, 8))


@pytest.mark.slow
def test_the_conditions_that_each_family_supports(compose: Callable[..., Any], tmp_path: Path) -> None:
    """SD-1.5 neither uses nor needs the pooled vector."""
    from urepa.models.backbones.sd15_text import SD15Text
    from urepa.models.backbones.sdxl import SDXL

    def made(*parts: str, text: int = 768) -> Any:
        widths = {TEXT: text, POOLED: 1280, CLASS: 10}
        return type("Track", (), {"condition_widths": {part: widths[part] for part in parts}})

    text = SD15Text(weights="random", gradient_checkpointing=False)
    xl = SDXL(weights="random", gradient_checkpointing=False)
    for parts in ((TEXT,), (TEXT, POOLED)):
        check_condition(text, made(*parts))
    check_condition(xl, made(TEXT, POOLED, text=2048))
    with pytest.raises(
        UserError, match=r"conditioned on text, and the data's conditions have class; choose a backbone"
    ):
        check_condition(text, made(CLASS))
    with pytest.raises(UserError, match=r"on text, text.pooled, and .* have text; choose a backbone of .*sd15_text"):
        check_condition(xl, made(TEXT))
    with pytest.raises(UserError, match=r"have class, text; choose other data, or another text_encoder@"):
        check_condition(text, made(CLASS, TEXT))
    both = overrides(tmp_path / "images", tmp_path / "data", tmp_path / "clip", "data.num_classes=2")
    captions = [o for o in both if not o.startswith("backbone")]
    for name in ("sd15_text", "sdxl", "kolors"):
        check_shapes(compose(*captions, f"backbone={name}"))


def test_a_part_without_mask_fails_an_assertion(backbones: Any) -> None:
    condition = texts("sdxl", 2)
    with pytest.raises(AssertionError, match="no part 'text.pooled'"):
        ours(backbones["sdxl"], Condition({TEXT: condition[TEXT]}), noise(1))
    assert isinstance(condition[POOLED], Part)
