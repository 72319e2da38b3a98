"""Negative prompts, from which images are guided away: compared with diffusers' own pipeline, and as `generate` takes
them.

Shapes: B images, CHW latent.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from captioned import KEPT, overrides, write_captioned
from photos import write_clip_text, write_sd
from PIL import Image
from torch import Tensor, nn
from toy_runs import write_run

from urepa.core.conditions import Condition, Part
from urepa.core.errors import UserError
from urepa.core.part_names import TEXT
from urepa.core.types import Denoised
from urepa.data.text_conditions import TextConditions
from urepa.generate import check_run_request
from urepa.inference.image_request import ImageSet, generate
from urepa.inference.load_weights import find_origin
from urepa.inference.open_run import load
from urepa.method.ddpm_sampling import sample_by
from urepa.method.guidance import guidance_passes
from urepa.method.objectives.ddpm_math import EpsilonMath
from urepa.models.text_encoders.clip_text import CLIPText

Ask = Callable[..., dict[str, Any]]


# --- the formula ------------------------------------------------------------------------------------------------


class OfTokens(nn.Module):
    """diffusers' U-Net, which takes a text's tokens directly."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, t_B: Tensor, condition: Condition) -> Denoised:
        return Denoised(self.unet(x, t_B, condition[TEXT].tokens_BLD).sample)


@pytest.mark.slow
@pytest.mark.parametrize("negative", [None, "blue"])
@torch.no_grad()
def test_latents_equal_the_pipelines(tmp_path: Path, negative: str | None) -> None:
    """The latents of SD-1.5's pipeline with and without a negative prompt. Without one, the empty prompt's record is
    used."""
    from diffusers import DDIMScheduler

    place = write_sd(tmp_path / "sd")
    betas: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler = DDIMScheduler(**betas, clip_sample=False, timestep_spacing="trailing", steps_offset=1)
    pipe = pipeline_of(place, scheduler)
    pipe.set_progress_bar_config(disable=True)
    prompts, noise = ["a red cat", "it is"], torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    against = None if negative is None else [negative] * 2
    encoded = [e.half().float() for e in pipe.encode_prompt(prompts, torch.device("cpu"), 1, True, against)]
    expected = pipe(
        prompt_embeds=encoded[0],
        negative_prompt_embeds=encoded[1],  # as records round them
        num_inference_steps=4,
        guidance_scale=3.0,
        latents=noise,
        output_type="latent",
    ).images
    known: dict[str, Any] = {"width": 16, "layer": -1, "length": 77, "padding": "attended", "null_text": "empty"}
    conditions = TextConditions.withheld_with(0.1, CLIPText(model=str(place), **known))
    objective = EpsilonMath(betas["beta_start"], betas["beta_end"], betas["beta_schedule"], 1000)
    away = None if negative is None else conditions.of_prompts([negative] * 2)
    given, backbone = conditions.of_prompts(prompts), OfTokens(pipe.unet)
    x0 = sample_by(backbone, objective, noise, given, [], "ddim", 4, 3.0, negative=away)
    torch.testing.assert_close(x0, expected, rtol=1e-4, atol=1e-3)
    plain = sample_by(backbone, objective, noise, given, [], "ddim", 4, 1.0)
    assert (x0 - plain).abs().max() > 0.02


def pipeline_of(place: Path, scheduler: Any) -> Any:
    """SD-1.5's pipeline with the parts in a folder."""
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    return StableDiffusionPipeline(
        AutoencoderKL.from_pretrained(place / "vae"),
        CLIPTextModel.from_pretrained(place / "text_encoder"),
        CLIPTokenizer.from_pretrained(place / "tokenizer"),
        UNet2DConditionModel.from_pretrained(place / "unet"),
        scheduler,
        None,
        None,
        requires_safety_checker=False,
    )


def test_guided_parts_come_from_the_negative_condition_and_the_rest_from_the_condition() -> None:
    """u has the negative condition's guided parts; each c_k has its own part, and the negative condition's for the
    others."""

    def of(*values: float) -> Condition:
        return Condition({name: Part.of(torch.full((2, 1), float(v))) for name, v in zip("abc", values, strict=True)})

    passes = guidance_passes(of(1, 2, 3), ("a", "b"), of(-1, -2, -3))
    rows = [[float(passes[name].vector_BD[2 * i]) for name in ("a", "b", "c")] for i in range(3)]
    assert rows == [[-1, -2, 3], [1, -2, 3], [-1, 2, 3]]
    assert all(part.given_B.all() for part in passes.parts.values())
    passes = guidance_passes(of(1, 2, 3), ("a+b",), of(-1, -2, -3))
    rows = [[float(part.vector_BD[2 * i]) for part in passes.parts.values()] for i in range(2)]
    assert rows == [[-1, -2, 3], [1, 2, 3]]


# --- generate ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["sd15", "before"])
def run(request: Any, tmp_path_factory: pytest.TempPathFactory, compose: Callable[..., dict[str, Any]]) -> Path:
    """A run on captions whose backbone learns its null, with SD-1.5's text encoder; and the same run stored by an
    earlier version."""
    root = tmp_path_factory.mktemp(f"negatives_{request.param}")
    write_captioned(root / "images", 2)
    write_clip_text(root / "clip", seed=0)
    kept = [f"data.text_encoder.{key}={value}" for key, value in KEPT.items()] if request.param == "before" else []
    config = compose(*overrides(root / "images", root / "data", root / "clip", "loss=none", *kept))
    return write_run(root / "outputs" / "captions" / "seed0", config, 3)


@pytest.fixture(scope="module")
def ask(compose: Callable[..., dict[str, Any]]) -> Ask:
    def ask(run: Path, *overrides: str) -> dict[str, Any]:
        return check_run_request(compose(f"run='{run}'", "steps=2", "n=1", *overrides, root="generate"))

    return ask


def image(folder: Path) -> np.ndarray:
    (file,) = (folder / "images").glob("*.png")
    return np.asarray(Image.open(file)).astype(int)


@pytest.mark.slow
def test_images_are_guided_away_from_a_negative_prompt(run: Path, ask: Ask, tmp_path: Path) -> None:
    """With a scale of 0, images are those of the negative prompt. It is recorded in the request, and another one is
    refused."""
    for name, *given in (
        ("away", "prompt=red", "guidance=3", "negative=zz"),
        ("null", "prompt=red", "guidance=3"),
        ("zero", "prompt=red", "guidance=0", "negative= zz "),
        ("zz", "prompt=zz"),
    ):
        generate(ask(run, *given, f"out={tmp_path}/{name}"))
    assert np.abs(image(tmp_path / "zero") - image(tmp_path / "zz")).max() <= 1
    assert np.abs(image(tmp_path / "away") - image(tmp_path / "null")).max() > 1
    assert json.loads((tmp_path / "away" / "request.json").read_text())["negative"] == "zz"
    assert "negative" not in json.loads((tmp_path / "null" / "request.json").read_text())
    for other in (["negative=blue"], []):
        with pytest.raises(UserError, match="holds other images .*negative"):
            generate(ask(run, "prompt=red", "guidance=3", f"out={tmp_path}/away", *other))


@pytest.mark.fast(1)
def test_a_negative_prompt_has_its_own_folder(run: Path, ask: Ask) -> None:
    names = []
    for given in ([], ["negative=blue"], ["negative=zz"]):
        asked = ask(run, "prompt=red", "guidance=3", *given)
        names.append(ImageSet(asked, find_origin(asked)).folder.name)
    assert len(set(names)) == 3
    assert all(name.startswith(names[0]) for name in names)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["guidance=1"], "negative has no effect with guidance=1, which is no guidance; give guidance=4 or drop it"),
        (["guidance=2", "negative=' '"], "negative is empty; drop it: without it images are guided away"),
    ],
)
def test_a_negative_prompt_without_effect_is_refused(run: Path, ask: Ask, given: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        ask(run, "prompt=red", "negative=blue", *given)


@pytest.mark.slow
def test_a_run_of_classes_takes_no_negative_prompt(
    compose: Any, ask: Ask, small_run: list[str], tmp_path: Path
) -> None:
    of_classes = write_run(tmp_path / "quickstart" / "seed0", compose(*small_run), 10)
    with pytest.raises(UserError, match="negative has no effect on this run, whose conditions are classes; drop it"):
        ask(of_classes, "negative=blue", "guidance=3")


def test_features_use_the_null_condition_of_the_training(run: Path) -> None:
    """With the training's text encoder alone, if its record stands for no caption."""
    opened = load(run, "cpu")
    images = torch.rand(2, 3, 64, 64)
    tokens = opened.features(images, tap="mid")
    assert tokens.x_BND.isfinite().all()
    opened.made_text = {"encoder": {"weights_sha256": "0" * 64}}
    opened.track.conditions.networks.clear()
    if opened.track.conditions.encoder.null_text == "zeros":
        assert torch.equal(opened.features(images, tap="mid").x_BND, tokens.x_BND)
        return
    with pytest.raises(UserError, match="has other weights here"):
        opened.features(images, tap="mid")


def test_a_run_of_an_earlier_version_keeps_its_settings(run: Path, tmp_path: Path) -> None:
    """Its stored config lacks both settings: padding was masked, and zeros stood for no caption."""
    shutil.copytree(run, tmp_path / "seed0")
    file = tmp_path / "seed0" / "config.yaml"
    stored = yaml.safe_load(file.read_text())
    stored["schema"] = 6
    for key in KEPT:
        del stored["data"]["text_encoder"][key]
    file.write_text(yaml.safe_dump(stored))
    opened = load(tmp_path / "seed0", "cpu")
    encoder = opened.track.conditions.encoder
    assert {key: getattr(encoder, key) for key in KEPT} == KEPT
    text = opened.prompt_condition(["red", ""])[TEXT]
    assert text.mask_BL is not None
    assert text.mask_BL.sum(1).tolist() == [5, encoder.length]
    assert not text.value[1].any()
