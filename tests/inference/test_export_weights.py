"""Exports, loaded with diffusers' own loaders: the same pixels as `generate`; and a model card that no name can
break."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from class_ids import of_ids
from PIL import Image
from safetensors.torch import load_file
from toy_runs import small_pipeline, small_sd, write_run

import urepa
from urepa.core.errors import UserError
from urepa.export import check
from urepa.inference import export_weights
from urepa.inference.export_weights import export
from urepa.inference.image_request import generate
from urepa.inference.model_card import code_block, model_card
from urepa.method.ddpm_sampling import image_noise, sample

Compose = Callable[..., dict[str, Any]]
CLASSES = [207, 999]
ELSEWHERE = {
    "checkpoint": None,
    "out": None,
    "format": "diffusers",
    "push": None,
    "data": {"root": None, "vae": None},
    "backbone": {"weights": None},
}
# adapters on attention and convolutions, with α ≠ r
LORA = ("lora.alpha=2", "lora.targets=attention_conv")
FULL = ("lora=none", "optimizer=adamw_full", "objective=ddpm_eps_scaled")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def overrides(root: Path) -> list[str]:
    return small_sd(root)


def asked_of(run: Path, **more: Any) -> dict[str, Any]:
    return ELSEWHERE | {"run": str(run)} | more


def generated(run: Path, **more: Any) -> dict[str, np.ndarray]:
    """The pixels of `generate`, by variant."""
    out = run / f"images{len(list(run.iterdir()))}"
    request = {"classes": CLASSES, "n": 2, "sampler": "dpmsolver", "steps": 4, "guidance": 3.0, "seed": 5}
    request |= {
        "against": None,
        "bucket": None,
        "size": None,
        "x0_shape": None,
        "negative": None,
        "image": None,
        "guidance_text": None,
        "guidance_image": None,
        "prompts": None,
        "batch_size": 16,
        "precision": "fp32",
        "guidance_interval": [0.0, 1.0],
        "class_names": [],
    }
    generate(asked_of(run, out=str(out)) | request | more)
    assert (out / "grid.png").exists()
    return {
        folder.name: np.stack([np.asarray(Image.open(p)) for p in sorted(folder.iterdir())])
        for folder in out.iterdir()
        if folder.is_dir()
    }


def through(pipe: Any, root: Path) -> np.ndarray:
    """The same images, made by a pipeline."""
    prompts = torch.load(root / "data" / "clip_embeddings_1001.pt", weights_only=True).float()
    images = [(c, i) for c in CLASSES for i in range(2)]
    made = pipe(
        latents=torch.stack([image_noise(5, c, i, (4, 8, 8)) for c, i in images]),
        prompt_embeds=prompts[[c for c, _ in images]],
        negative_prompt_embeds=prompts[[1000] * 4],
        guidance_scale=3.0,
        num_inference_steps=4,
    )
    return np.stack([np.asarray(image) for image in made.images])


def dpmsolver(folder: Path) -> Any:
    from diffusers import DPMSolverMultistepScheduler

    return DPMSolverMultistepScheduler.from_pretrained(folder, subfolder="scheduler")


@pytest.mark.slow
def test_lora_through_a_pipeline_gives_the_same_pixels(root: Path, overrides: list[str], compose: Compose) -> None:
    from diffusers import UNet2DConditionModel

    run = write_run(root / "outputs" / "track_a" / "lora", compose(*overrides, *LORA), 4)
    ours = generated(run, against="base")
    folder = export(asked_of(run))
    assert folder == run / "export" / "step_00000004"
    pipe = small_pipeline(
        UNet2DConditionModel.from_pretrained(root / "sd" / "unet"), dpmsolver(folder), components=root / "sd"
    )
    assert np.array_equal(through(pipe, root), ours["base"])
    pipe.load_lora_weights(folder)
    assert np.array_equal(through(pipe, root), ours["images"])
    assert np.abs(ours["images"].astype(int) - ours["base"]).mean() > 1, "the adapters do something"
    config = (folder / "scheduler" / "scheduler_config.json").read_text()
    assert '"prediction_type": "v_prediction"' in config
    assert '"beta_schedule": "linear"' in config
    heads = load_file(folder / "heads.safetensors")
    opened = urepa.load(run, device="cpu")
    assert heads.keys() == opened.model.heads.state_dict().keys()
    assert all(torch.equal(heads[k], v) for k, v in opened.model.heads.state_dict().items())
    assert not (folder / "unet").exists()
    card = (folder / "README.md").read_text()
    assert "**The model predicts v**, with linear β from 0.00085 to 0.012" in card
    assert "LoRA of rank 8" in card
    assert "aligned at mid to dinov2-large with λ = 0.5 and w = 3." in card
    assert "- representation-alignment" in card
    assert "| train/total | 1.5 |" in card
    assert "> Claim: the description's run" in card
    assert "tracking" not in (folder / "config.yaml").read_text()


@pytest.mark.slow
def test_a_lora_in_kohyas_layout_is_the_same_lora(root: Path, overrides: list[str], compose: Compose) -> None:
    run = write_run(root / "outputs" / "track_a" / "kohya", compose(*overrides, *LORA), 4)
    folder = export(asked_of(run, format="kohya"))
    assert folder == run / "export" / "step_00000004_kohya"
    file = load_file(folder / "lora_kohya.safetensors")
    assert len(file) == 3 * (8 + 4)
    assert {value.item() for name, value in file.items() if name.endswith(".alpha")} == {2.0}
    ours = {n: p for n, p in urepa.load(run, device="cpu").model.backbone.named_parameters() if ".lora_" in n}
    place = "mid_block.resnets.1.conv2"
    down = file[f"lora_unet_{place.replace('.', '_')}.lora_down.weight"]
    assert torch.equal(down, ours[f"unet.{place}.lora_A.default.weight"])
    assert not list(folder.glob("pytorch_lora*"))
    card = (folder / "README.md").read_text()
    assert 'pipe.load_lora_weights(folder, weight_name="lora_kohya.safetensors")' in card
    assert "ComfyUI" in card
    assert "- lora\n" in card
    assert (folder / "scheduler").is_dir()
    assert export(asked_of(run)) == run / "export" / "step_00000004"


@pytest.mark.slow
def test_kohyas_layout_is_of_lora_on_a_unet(
    root: Path, overrides: list[str], compose: Compose, small_sit: list[str], tmp_path: Path
) -> None:
    full = write_run(tmp_path / "outputs" / "full" / "seed0", compose(*overrides, *FULL), 4)
    sit = write_run(tmp_path / "outputs" / "sit" / "seed0", compose(*small_sit), 4)
    for run, trained in ((full, "the whole U-Net"), (sit, "a transformer")):
        check(compose(f"run='{run}'", root="export"))
        with pytest.raises(UserError, match=f"format=kohya is a layout of LoRA on a U-Net, .* trained {trained}; drop"):
            check(compose(f"run='{run}'", "format=kohya", root="export"))


@pytest.mark.slow
def test_a_full_unet_through_a_pipeline_gives_the_same_pixels(
    root: Path, overrides: list[str], compose: Compose
) -> None:
    from diffusers import UNet2DConditionModel

    run = write_run(root / "outputs" / "track_a" / "full", compose(*overrides, *FULL), 4)
    ours = generated(run)
    folder = export(asked_of(run))
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    pipe = small_pipeline(unet, dpmsolver(folder), components=root / "sd")
    assert np.array_equal(through(pipe, root), ours["images"])
    assert pipe.scheduler.config.prediction_type == "epsilon"
    assert not (folder / "embedding.safetensors").exists(), "the prompts are the text encoder's"


@pytest.mark.slow
def test_a_small_unets_card_says_how_to_sample(
    compose: Compose, small_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "outputs" / "quickstart" / "seed0", compose(*small_run), 3)
    folder = export(asked_of(run, out=str(tmp_path / "given" / "there")))
    card = (folder / "README.md").read_text()
    assert "The run was not finished" in card
    assert "Choose a number of steps that divides 1000: with others diffusers' DDIMScheduler uses wrong" in card
    code = card.split("```python\n")[1].split("```")[0].replace("set_timesteps(50)", "set_timesteps(4)")
    monkeypatch.chdir(folder)
    torch.manual_seed(0)
    found: dict[str, Any] = {}
    exec(code, found)
    opened = urepa.load(run, device="cpu")
    torch.manual_seed(0)
    noise = torch.randn(1, *opened.track.latent_shape)
    condition = of_ids(torch.tensor([0]), 10)
    ours = sample(opened.model.backbone, opened.objective, noise, condition, "ddim", 4, {})
    assert torch.equal(found["x"], ours)


@pytest.mark.slow
def test_a_cards_steps_divide_the_timesteps(compose: Compose, small_run: list[str], tmp_path: Path) -> None:
    run = write_run(tmp_path / "outputs" / "quickstart" / "seed0", compose(*small_run, "objective.timesteps=60"), 3)
    assert "scheduler.set_timesteps(30)\n" in (export(asked_of(run)) / "README.md").read_text()


@pytest.mark.slow
def test_an_export_is_written_whole_or_not_at_all(
    compose: Compose, small_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "outputs" / "quickstart" / "seed0", compose(*small_run), 3)
    (run / "export" / ".step_00000003.tmp").mkdir(parents=True)  # of one that was killed
    (run / "export" / ".step_00000003.tmp" / "rest").touch()

    def full(*_: Any) -> None:
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(export_weights, "model_card", full)
        with pytest.raises(OSError, match="full"):
            export(asked_of(run))
    assert list((run / "export").iterdir()) == []
    folder = export(asked_of(run))
    assert not (folder / "rest").exists()
    with pytest.raises(UserError, match="exists already"):
        export(asked_of(run))


@pytest.mark.parametrize("control", [["loss.lambda_max=0"], ["loss=none"]])
def test_a_control_is_not_called_aligned(
    compose: Compose, small_run: list[str], tmp_path: Path, control: list[str]
) -> None:
    kept = [o for o in small_run if not o.startswith("loss.")]
    run = tmp_path / f"cifar10,{control[0]}" / "seed0"
    run.mkdir(parents=True)
    (run / "metrics.jsonl").touch()
    card = model_card(run, 3, compose(*kept, *control), "", [])
    assert f"# cifar10 · {control[0]}".replace("_", "\\_") in card
    assert "aligned" not in card
    assert "representation-alignment" not in card
    assert "without alignment" in card


def test_a_card_says_that_metrics_are_damaged(compose: Compose, small_run: list[str], tmp_path: Path) -> None:
    run = tmp_path / "cifar10" / "seed0"
    run.mkdir(parents=True)
    row = '{"step": 1, "time": 0, "train/total": 3}\n'
    (run / "metrics.jsonl").write_text(f"{row}#\n{row.replace('3', '2')}")
    with pytest.warns(UserWarning, match="line 2 of metrics.jsonl is not JSON"):
        card = model_card(run, 3, compose(*small_run), "", [])
    assert "| train/total | 2 |" in card
    assert "these are the last values up to this step. Some could not be read, so later ones may be missing." in card


@pytest.mark.slow
def test_a_card_lists_the_classes(compose: Compose, small_run: list[str], small_sit: list[str], tmp_path: Path) -> None:
    run = tmp_path / "outputs" / "quickstart" / "seed0"
    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_text("")
    names = ["bag", "<script>alert(1)</script>", "a|b\n# c", *(f"n{i}" for i in range(7))]
    assert "## Classes" not in model_card(run, 3, compose(*small_run), "", [])
    (run / "provenance.json").write_text(json.dumps({"data": {"classes": names}}))
    card = model_card(run, 3, compose(*small_run), "", [])
    listed = card.partition("## Classes\n\n")[2].partition("\n\n## ")[0].splitlines()
    assert listed[:3] == ["- 0: bag", "- 1: &lt;script&gt;alert(1)&lt;/script&gt;", "- 2: a\\|b \\# c"]
    assert len(listed) == 10
    config = compose(*small_sit)
    config["data"] |= {"source": "folder", "num_classes": 10}
    command = next(
        line for line in model_card(run, 3, config, "", ["model.safetensors"]).splitlines() if "urepa.t" in line
    )
    assert "data.num_classes=10" in command, "where it was counted is not where the card is read"


def test_names_cannot_break_the_card(compose: Compose, small_run: list[str], tmp_path: Path) -> None:
    config = compose(*small_run)
    config["data"]["name"] = "```\n<script>alert(1)</script>"
    run = tmp_path / "<script>alert(2)<|script>+[x](javascript:3)" / "seed0"
    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_text('{"step": 1, "time": 0, "val/<b>|": 2, "lr": 0.1, "train/total": 3}\n')
    card = model_card(run, 3, config, config["data"]["name"], [])
    head, code = card.split("````yaml\n")
    assert "&lt;script&gt;alert(2)&lt;\\|script&gt;" in head
    assert "[x](javascript" not in head
    assert "| val/&lt;b&gt;\\| | 2 |" in head
    assert head.index("val/&lt;b") < head.index("| train/total | 3 |")
    assert "| lr |" not in head
    assert code == "```\n<script>alert(1)</script>\n````\n"
    assert code_block("x", "y") == "```y\nx\n```"
