"""Published weights without a run, in diffusers' layouts: the same pixels as the run from which they were exported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from published import REQUEST, Compose, files
from safetensors.torch import load_file, save_file
from toy_runs import small_sd, write_run

import urepa
from urepa.core.errors import UserError
from urepa.inference.export_weights import export
from urepa.inference.image_request import generate
from urepa.inference.load_weights import find_origin
from urepa.inference.published_weights import check_scheduler
from urepa.models.backbones.sd15_net import sd15
from urepa.models.lora.lora_net import load_pipeline_lora


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("published")


@pytest.fixture(scope="module")
def sd(folder: Path) -> list[str]:
    return small_sd(folder)


@pytest.fixture(scope="module")
def sd_parts(sd: list[str]) -> list[str]:
    return [o for o in sd if o.startswith(("+experiment", "backbone.", "data."))]


@pytest.fixture(scope="module")
def lora_run(folder: Path, compose: Compose, sd: list[str]) -> Path:
    return write_run(
        folder / "outputs" / "track_a" / "seed42", compose(*sd, "lora.alpha=2", "lora.targets=attention_conv"), 4
    )


@pytest.fixture(scope="module")
def lora_export(lora_run: Path, compose: Compose) -> Path:
    return export(compose(f"run='{lora_run}'", root="export"))


@pytest.mark.slow
def test_a_lora_on_the_experiments_base_weights_gives_the_runs_pixels(
    lora_run: Path, lora_export: Path, sd_parts: list[str], ask: Any, folder: Path, compose: Compose
) -> None:
    """Both have the seed 0, although the experiment's own is 42."""
    request = [*REQUEST, "against=base"]
    generate(ask(f"run='{lora_run}'", *request, f"out={folder / 'lora_run'}"))
    alone = folder / "alone" / "pytorch_lora_weights.safetensors"
    alone.parent.mkdir()
    shutil.copy(lora_export / alone.name, alone)
    ours = files(folder / "lora_run")
    assert {name.split("/")[0] for name in ours} == {"base", "images"}
    generate(ask(f"checkpoint='{lora_export}'", *sd_parts, *request, f"out={folder / 'lora'}"))
    assert files(folder / "lora") == ours
    by_itself = find_origin(ask(f"checkpoint='{alone}'", *sd_parts, *request))
    assert by_itself.weights == find_origin(ask(f"checkpoint='{lora_export}'", *sd_parts, *request)).weights
    assert ours["base/c0001_00000.png"] != ours["images/c0001_00000.png"]
    assert json.loads((folder / "lora" / "request.json").read_text())["base"] == "sd"
    kohya = export(compose(f"run='{lora_run}'", "format=kohya", root="export"))
    for name, checkpoint in (("folder", kohya), ("file", kohya / "lora_kohya.safetensors")):
        generate(ask(f"checkpoint='{checkpoint}'", *sd_parts, *request, f"out={folder / name}"))
        assert files(folder / name) == ours


@pytest.mark.slow
def test_a_scheduler_beside_the_weights_is_checked(
    lora_export: Path, sd_parts: list[str], ask: Any, compose: Compose
) -> None:
    with pytest.raises(UserError, match=r"prediction_type v_prediction, here epsilon: give objective=ddpm_v$"):
        find_origin(ask(f"checkpoint='{lora_export}'", *sd_parts, "objective=ddpm_eps", *REQUEST))
    file = lora_export / "other.json"
    for option in ("ddpm_eps", "ddpm_eps_scaled", "ddpm_v", "ddpm_v_scaled"):
        prediction = "epsilon" if "eps" in option else "v_prediction"
        betas = "scaled_linear" if "scaled" in option else "linear"
        scheduler = {"prediction_type": prediction, "beta_schedule": betas, "beta_start": 0.00085, "beta_end": 0.012}
        file.write_text(json.dumps(scheduler))
        check_scheduler(file, compose(f"objective={option}")["objective"])
        with pytest.raises(UserError, match=f"prediction_type {prediction}, here flow; .*: give objective={option}$"):
            check_scheduler(file, compose("objective=flow")["objective"])
    file.write_text(json.dumps({"beta_schedule": "scaled_linear", "beta_start": 0.001, "beta_end": 0.012}))
    said = "give objective=ddpm_eps_scaled objective.beta_start=0.001$"
    with pytest.raises(UserError, match=said):
        check_scheduler(file, compose("objective=ddpm_v")["objective"])
    for other in ({"prediction_type": "sample"}, {"beta_schedule": "squaredcos_cap_v2"}, {"beta_end": 2.0}):
        file.write_text(json.dumps(other))
        with pytest.raises(UserError, match="no available objective has these settings"):
            check_scheduler(file, compose("objective=flow")["objective"])
    file.unlink()


@pytest.mark.slow
def test_a_whole_unet_gives_the_runs_pixels(
    folder: Path, sd: list[str], sd_parts: list[str], compose: Compose, ask: Any
) -> None:
    full = ["lora=none", "optimizer=adamw_full", "objective=ddpm_eps_scaled"]
    run = write_run(folder / "outputs" / "full" / "seed42", compose(*sd, *full), 4)
    exported = export(compose(f"run='{run}'", root="export"))
    request = [*REQUEST, "against=base"]
    generate(ask(f"run='{run}'", *request, f"out={folder / 'full_run'}"))
    parts = [*sd_parts, "objective=ddpm_eps_scaled"]
    generate(ask(f"checkpoint='{exported}'", *parts, *request, f"out={folder / 'full'}"))
    assert files(folder / "full") == files(folder / "full_run")
    for place in (exported, exported / "unet"):
        with pytest.raises(UserError, match="give objective=ddpm_eps_scaled"):
            find_origin(ask(f"checkpoint='{place}'", *sd_parts, *REQUEST))
    with pytest.raises(UserError, match="has neither pytorch_lora_weights.safetensors nor .* nor unet/config.json"):
        find_origin(ask(f"checkpoint='{folder}'", *parts))


@pytest.mark.slow
def test_a_small_unet_comes_with_its_classes(folder: Path, compose: Compose, small_run: list[str], ask: Any) -> None:
    run = write_run(folder / "outputs" / "quickstart" / "seed0", compose(*small_run), 3)
    exported = export(compose(f"run='{run}'", root="export"))
    parts = [o for o in small_run if o.startswith(("backbone.", "data.image_size"))]
    generate(ask(f"run='{run}'", *REQUEST, f"out={folder / 'small_run'}"))
    generate(ask(f"checkpoint='{exported}'", *parts, *REQUEST, f"out={folder / 'small'}"))
    assert files(folder / "small") == files(folder / "small_run")
    with pytest.raises(UserError, match=r"do not fit this run: .* differ by name or shape"):
        generate(
            ask(f"checkpoint='{exported}'", *parts, "backbone.layers_per_block=2", *REQUEST, f"out={folder / 'x'}")
        )


# --- LoRA files of others -----------------------------------------------------------------------------------


def adapted(folder: Path, sd_folder: Path, file: Path) -> torch.Tensor:
    """The prediction of the small pipeline's U-Net under a LoRA file."""
    prompts = folder / "data" / "clip_embeddings_1001.pt"
    backbone = sd15(str(sd_folder), str(prompts), False, latent_shape=(4, 8, 8), num_classes=1000)
    load_pipeline_lora(backbone.unet, file, backbone.adapter_files)
    torch.manual_seed(0)
    with torch.no_grad():
        return backbone.unet(torch.randn(1, 4, 8, 8), 7, backbone.embedding_KLE[:1]).sample


@pytest.mark.slow
def test_lora_files_of_others(folder: Path, lora_run: Path, lora_export: Path) -> None:
    ours = lora_export / "pytorch_lora_weights.safetensors"
    expected = adapted(folder, folder / "sd", ours)
    opened: Any = urepa.load(lora_run, device="cpu").model.backbone
    opened.unet.save_lora_adapter(folder / "unet_alone")
    assert torch.equal(adapted(folder, folder / "sd", folder / "unet_alone" / ours.name), expected)
    values = load_file(ours)
    some = next(iter(values))
    for name, changed, said in (
        ("text", values | {"text_encoder.x.lora_A.weight": torch.zeros(2, 2)}, "adapts the text encoder too"),
        ("more", values | {"unet.up_blocks.9.to_q.lora_A.weight": torch.zeros(2, 2)}, "does not fit this U-Net"),
        ("shape", values | {some: torch.zeros(2, 3)}, "does not fit this U-Net"),
        ("none", {"conv_in.weight": torch.zeros(2)}, "holds no LoRA"),
    ):
        save_file(changed, folder / f"{name}.safetensors")
        with pytest.raises(UserError, match=said):
            adapted(folder, folder / "sd", folder / f"{name}.safetensors")
