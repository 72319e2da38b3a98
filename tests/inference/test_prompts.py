"""Images of prompts: which prompts are requested, which are refused, and that the images follow from the captions'
records."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captioned import overrides, write_captioned
from photos import write_clip_text
from PIL import Image
from toy_runs import write_run

from urepa.core.errors import UserError
from urepa.core.part_names import TEXT
from urepa.generate import check_run_request
from urepa.inference.export_weights import export
from urepa.inference.image_request import generate
from urepa.inference.open_run import load

Ask = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, compose: Callable[..., dict[str, Any]]) -> Path:
    """A run on captions; its caches were never made."""
    root = tmp_path_factory.mktemp("prompts")
    write_captioned(root / "images", 2)
    write_clip_text(root / "clip", seed=0)
    config = compose(*overrides(root / "images", root / "data", root / "clip", "loss=none"))
    return write_run(root / "outputs" / "captions" / "seed0", config, 3)


@pytest.fixture(scope="module")
def of_classes(tmp_path_factory: pytest.TempPathFactory, compose: Any, small_run: list[str]) -> Path:
    return write_run(tmp_path_factory.mktemp("outputs") / "quickstart" / "seed0", compose(*small_run), 10)


@pytest.fixture(scope="module")
def ask(compose: Callable[..., dict[str, Any]]) -> Ask:
    """ask(run, *overrides): the request as the command makes it."""

    def ask(run: Path, *overrides: str) -> dict[str, Any]:
        return check_run_request(compose(f"run='{run}'", "steps=2", *overrides, root="generate"))

    return ask


def pixels(folder: Path) -> dict[str, np.ndarray]:
    return {file.name: np.asarray(Image.open(file)) for file in sorted((folder / "images").glob("*.png"))}


def nearly_same(one: np.ndarray, other: np.ndarray) -> bool:
    """Equal up to rounding, which depends on the batch size."""
    return int(np.abs(one.astype(int) - other.astype(int)).max()) <= 1


@pytest.mark.slow
def test_prompts_of_a_file(run: Path, ask: Ask, tmp_path: Path) -> None:
    """One prompt per line; each image is independent of the others."""
    (tmp_path / "prompts.txt").write_text("\ufeffa red cat\r\n\r\n  قطة \nblue", encoding="utf-8")
    asked = ask(run, f"prompts={tmp_path}/prompts.txt", "n=2", f"out={tmp_path}/all", "batch_size=4")
    assert asked["prompts"] == ["a red cat", "قطة", "blue"]
    generate(asked)
    made = pixels(tmp_path / "all")
    assert list(made) == [f"p{p:04d}_{i:05d}.png" for p in range(3) for i in range(2)]
    assert json.loads((tmp_path / "all" / "request.json").read_text())["prompts"] == asked["prompts"]
    assert (tmp_path / "all" / "grid.png").is_file()
    generate(ask(run, "prompt=a red cat", "n=2", f"out={tmp_path}/one"))
    one = pixels(tmp_path / "one")
    assert all(nearly_same(one[name], made[name]) for name in one)
    with pytest.raises(UserError, match="holds other images .*prompts"):
        generate(ask(run, "prompt=a blue cat", "n=2", f"out={tmp_path}/one"))


@pytest.mark.slow
def test_the_prompt_changes_the_image_and_guidance_moves_it_away_from_the_null(
    run: Path, ask: Ask, tmp_path: Path
) -> None:
    """With a scale of 0 it is the null condition's image, which the empty prompt gives too."""
    images = {}
    for name, prompt, guidance in (
        ("red", "red", 1),
        ("zz", "zz", 1),
        ("null", "", 1),
        ("u", "red", 0),
        ("s", "red", 3),
    ):
        generate(ask(run, f"prompt={prompt}", "n=1", f"guidance={guidance}", f"out={tmp_path}/{name}"))
        (images[name],) = pixels(tmp_path / name).values()
    assert len({image.tobytes() for image in (images[n] for n in ("red", "zz", "null", "s"))}) == 4
    assert nearly_same(images["u"], images["null"])  # of another batch: guidance asks twice


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ((), r"the conditions of this run are captions; give one of prompt=TEXT, or prompts=FILE"),
        (("prompt=a", "prompts=b.txt"), r"give one of prompt=TEXT"),
        (("classes=[0]",), "classes has no effect on this run, whose conditions are captions; give prompt=TEXT"),
        (("prompts=nowhere.txt",), r"prompts=nowhere\.txt is not a file"),
    ],
)
def test_requests_that_a_run_of_captions_cannot_answer(
    run: Path, ask: Ask, overrides: tuple[str, ...], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        ask(run, *overrides)


def test_a_file_without_a_prompt(run: Path, ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text(" \n\n")
    with pytest.raises(UserError, match=r"empty\.txt has no text; write one prompt per line"):
        ask(run, f"prompts={tmp_path}/empty.txt")


@pytest.mark.slow
@pytest.mark.parametrize("key", ["prompt", "prompts"])
def test_a_run_of_classes_takes_no_prompts(of_classes: Path, ask: Ask, key: str) -> None:
    with pytest.raises(UserError, match=f"{key} has no effect on this run, whose conditions are classes"):
        ask(of_classes, f"{key}=a")
    with pytest.raises(UserError, match="this run's conditions are classes, not texts"):
        load(of_classes, "cpu").prompt_condition(["a"])


def test_prompts_are_encoded_with_the_text_encoder_of_the_training(run: Path) -> None:
    opened = load(run, "cpu")
    assert opened.prompt_condition(["red", ""])[TEXT].given_B.tolist() == [True, False]
    opened.made_text = {"encoder": {"weights_sha256": "0" * 64}}
    opened.track.conditions.networks.clear()
    with pytest.raises(UserError, match="has other weights here"):
        opened.prompt_condition(["red"])


@pytest.mark.slow
def test_the_text_encoder_may_have_moved(run: Path, ask: Ask, tmp_path: Path) -> None:
    """For a run that was trained elsewhere; a run without a text encoder has no such path."""
    place = write_clip_text(tmp_path / "moved", seed=0)
    opened = load(run, "cpu", {"data.text_encoder.model": str(place)})
    assert opened.track.conditions.encoder.model == str(place)
    generate(ask(run, "prompt=red", "n=1", f"data.text_encoder.model={place}", f"out={tmp_path}/out"))
    assert list(pixels(tmp_path / "out")) == ["p0000_00000.png"]
    with pytest.raises(UserError, match=r"lost has no config\.json; give a local folder with tokenizer/"):
        generate(ask(run, "prompt=red", "n=1", "data.text_encoder.model=lost", f"out={tmp_path}/other"))
    assert not (tmp_path / "other").exists()


def test_features_are_read_without_a_caption(run: Path) -> None:
    opened = load(run, "cpu")
    tokens = opened.features(torch.rand(2, 3, 64, 64), tap="mid")
    assert tokens.x_BND.shape[0] == 2


@pytest.mark.slow
def test_an_export_makes_the_same_images(run: Path, ask: Ask, tmp_path: Path) -> None:
    """With diffusers alone: the null's tensors are beside the U-Net."""
    from diffusers import UNet2DConditionModel
    from safetensors.torch import load_file

    export(
        {
            "run": str(run),
            "format": "diffusers",
            "push": None,
            "out": str(tmp_path / "out"),
            "data": {"root": None, "vae": None},
            "backbone": {"weights": None},
        }
    )
    unet: Any = UNet2DConditionModel.from_pretrained(tmp_path / "out" / "unet")
    null = load_file(tmp_path / "out" / "embedding.safetensors")
    opened = load(run, "cpu")
    torch.manual_seed(0)
    x_t, t_B = torch.randn(1, 48, 16, 16), torch.tensor([500])
    ours = opened.model.backbone(x_t, t_B, opened.track.conditions.null(1)).prediction_RCHW
    with torch.no_grad():
        mask = torch.ones(1, 1, dtype=torch.bool)
        theirs = unet(
            x_t, t_B, null["null_D"][None, None], class_labels=null["null_P"][None], encoder_attention_mask=mask
        ).sample
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert "encoder_attention_mask=mask" in (tmp_path / "out" / "README.md").read_text()
