"""U-REPA on SD-1.5, SDXL and Kolors with captions: the experiments' settings, their costs at full size, the example of
SimpleTuner's page with each, and each of them from photographs to training steps with small random networks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from families import ARCHITECTURES
from flat_photos import write_flat
from photos import write_clip_text, write_dinov2, write_sd
from text_folders import write_kolors, write_sdxl

from urepa.config.simpletuner import expand_simpletuner
from urepa.core.nested_dicts import flatten
from urepa.costs.estimate import Device, plan
from urepa.data.stages.build import Build
from urepa.data.stores.lmdb_store import Part
from urepa.models.weight_files import trainable
from urepa.prefetch import required_files
from urepa.reports.description.markdown_and_latex import as_markdown
from urepa.reports.description.methodology import methodology
from urepa.reports.description.subject import subject_of
from urepa.runs.trackers.no_tracking import NoShipper
from urepa.training import assembly, trainer_assembly
from urepa.training.checks.combinations import check

Compose = Callable[..., dict[str, Any]]
SD15, SDXL, KOLORS = "urepa_sd15_captions", "urepa_sdxl", "urepa_kolors"
HUB = {
    SD15: "stable-diffusion-v1-5/stable-diffusion-v1-5",
    SDXL: "stabilityai/stable-diffusion-xl-base-1.0",
    KOLORS: "Kwai-Kolors/Kolors-diffusers",
}
EVERY = pytest.mark.parametrize("experiment", HUB)
ELSEWHERE = ("data.images=DIR", "data.num_classes=1", "data.train_images=2000", "data.val_images=100")
H200 = Device("H200", "cuda", 790e12, 141e9)
# of SimpleTuner's page on REPA and U-REPA
EXAMPLE = {
    "urepa_enabled": True,
    "urepa_lambda": 0.5,
    "urepa_manifold_weight": 3.0,
    "urepa_model": "dinov2_vitg14",
    "urepa_encoder_image_size": 518,
}
DECAYS = {"urepa_scheduler": "cosine", "urepa_warmup_steps": 100, "urepa_cutoff_step": 5000}


def given(experiment: str, *more: str) -> list[str]:
    return [f"+experiment={experiment}", *ELSEWHERE, *more]


# --- what they say ----------------------------------------------------------------------------------------------


@pytest.mark.fast(1)
@EVERY
def test_the_values_are_simpletuners(compose: Compose, experiment: str) -> None:
    config = compose(*given(experiment))
    check(config, given(experiment))
    loss, teacher, data = config["loss"], config["teacher"], config["data"]
    assert (loss["lambda_max"], loss["warmup_steps"], loss["manifold_weight"]) == (0.5, 0, 3.0)
    assert (loss["level"], loss["manifold_diagonal"], loss["taps"]) == ("token", True, {"mid": 1.0})
    assert (teacher["model"], teacher["image_size"], teacher["grid"]) == ("facebook/dinov2-giant", 518, [37, 37])
    assert (data["teacher_sees"], data["captions"], config["lora"]["blocks"]) == ("decoded", "files", "mid")
    assert config["head"] == {"_target_": "urepa.method.heads.layer_norm_linear.LayerNormLinear"}
    frozen = (config["backbone"]["weights"], data["vae"], data["text_encoder"]["model"])
    assert frozen == (HUB[experiment],) * 3


@pytest.mark.fast(1)
@EVERY
def test_the_objective_is_the_familys(compose: Compose, experiment: str) -> None:
    objective = compose(*given(experiment))["objective"]
    assert objective.pop("_target_").endswith(".DDPMEpsilon")
    end, timesteps = (0.014, 1100) if experiment == KOLORS else (0.012, 1000)
    assert objective == {
        "beta_start": 0.00085,
        "beta_end": end,
        "beta_schedule": "scaled_linear",
        "timesteps": timesteps,
        "min_snr": None,
    }


@pytest.mark.fast(1)
@EVERY
def test_the_tracks_teacher_is_the_experiments(compose: Compose, experiment: str) -> None:
    """So the command in its header makes the tokens that the run reads."""
    config = compose(*given(experiment))
    parts = compose(f"data={config['data']['name']}", *ELSEWHERE, root="preprocess")
    assert (parts["data"], parts["teacher"]) == (config["data"], config["teacher"])


@pytest.mark.fast(1)
@EVERY
def test_prefetch_fetches_one_pipeline_and_the_teacher(compose: Compose, experiment: str) -> None:
    files = required_files(compose(*given(experiment), root="prefetch"))
    assert files.keys() == {HUB[experiment], "facebook/dinov2-giant"}
    numbers = ("", "_2") if experiment == SDXL else ("",)
    networks = {f"text_encoder{number}/config.json" for number in numbers} | {"unet/config.json", "vae/config.json"}
    assert {file for file in files[HUB[experiment]] if file.endswith("/config.json")} == networks


# --- SimpleTuner's example --------------------------------------------------------------------------------------


@pytest.mark.fast(1)
@pytest.mark.parametrize(
    ("more", "changed"),
    [
        ({}, {"loss.grid": "smaller"}),
        ({"urepa_use_tae": True}, {"loss.grid": "smaller", "data.teacher_sees": "tae_decoded"}),
        (
            DECAYS,
            {
                "loss.grid": "smaller",
                "loss.warmup_steps": 100,
                "schedule._target_": "urepa.method.schedules.cosine.Cosine",
                "schedule.decay_steps": None,
                "schedule.final": 0.0,
                "schedule.stop_step": 5000,
            },
        ),
    ],
    ids=["example", "tae", "decays"],
)
@EVERY
def test_the_pages_example_changes_what_it_names(
    compose: Compose, tmp_path: Path, experiment: str, more: dict[str, Any], changed: dict[str, Any]
) -> None:
    """The experiments have its values already, except that SimpleTuner compares on the smaller grid."""
    (file := tmp_path / "config.json").write_text(json.dumps(EXAMPLE | more))
    own = given(experiment, *(["data.tae=madebyollin/taesd"] if "urepa_use_tae" in more else []))
    before = flatten(compose(*own))
    overrides = expand_simpletuner([*own, f"+simpletuner={file}"], "train")
    config = compose(*overrides)
    check(config, overrides)
    after = flatten(config)
    keys = before.keys() | after.keys()
    differ = {key for key in keys if before.get(key, ...) != after.get(key, ...)}
    assert {key: after[key] for key in differ} == changed


# --- at full size -----------------------------------------------------------------------------------------------

SIZES = {
    SD15: (859_520_964, 155_648, 1280 * 1536 + 1536),
    SDXL: (2_567_463_684, 1_761_280, 1280 * 1536 + 1536),
}


@pytest.mark.slow
@pytest.mark.parametrize("experiment", SIZES)
def test_an_experiment_is_planned_and_described_at_full_size(compose: Compose, experiment: str) -> None:
    """Without weights. The head is a LayerNorm over 1280 channels and one dense layer."""
    config = compose(*given(experiment))
    planned = plan(config, H200)
    backbone, adapters, dense = SIZES[experiment]
    parts = planned.counted.parameters
    assert sum(parts[part]["all"] for part in ("down", "mid", "up")) == backbone + adapters
    assert {part: counts["trainable"] for part, counts in parts.items() if counts["trainable"]} == {
        "mid": adapters,
        "head": dense + 2 * 1280,
    }
    assert planned.fits
    tokens = next(cache for cache in planned.counted.caches if cache.name == "tokens")
    assert tokens.record_bytes == pytest.approx(37 * 37 * 1536 * 2, rel=1e-3)
    text = as_markdown("x", methodology(subject_of(config, planned), ""))
    assert HUB[experiment] in text
    assert f"{adapters:,}" in text


# --- from photographs to steps ----------------------------------------------------------------------------------

LATENT = "data.latent_shape=[4,16,16]"
OF_TEXT = {SD15: (16, 16), SDXL: (40, 20), KOLORS: (32, 32)}  # widths of tokens and of the vector
FAMILY = {SD15: "sd15", SDXL: "sdxl", KOLORS: "kolors"}
WRITE = {SD15: write_clip_text, SDXL: write_sdxl, KOLORS: write_kolors}
LACKING = "the package sentencepiece is not installed, which Kolors' tokenizer needs (pip install sentencepiece)"
needs_sentencepiece = pytest.mark.skipif(find_spec("sentencepiece") is None, reason=LACKING)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of three shapes with captions, a VAE and a DINOv2."""
    root = tmp_path_factory.mktemp("urepa")
    write_flat(root / "images")
    write_sd(root / "sd")
    write_dinov2(root / "dino")
    return root


@pytest.fixture
def bf16() -> Iterator[Any]:
    """An accelerator with the experiments' precision, on the CPU."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    yield Accelerator(cpu=True, mixed_precision="bf16")
    AcceleratorState._reset_state(reset_partial_state=True)


def write_networks(folder: Path, experiment: str) -> Path:
    """Writes the text encoder and a U-Net for its widths, in the layout of a pipeline's folder."""
    from diffusers import UNet2DConditionModel

    WRITE[experiment](folder)
    family, (tokens, vector) = FAMILY[experiment], OF_TEXT[experiment]
    own: dict[str, Any] = {"sample_size": 16}
    own |= {"encoder_hid_dim": tokens} if family == "kolors" else {"cross_attention_dim": tokens}
    own |= {} if family == "sd15" else {"projection_class_embeddings_input_dim": 6 * 8 + vector}
    torch.manual_seed(0)
    UNet2DConditionModel(**ARCHITECTURES[family] | own).save_pretrained(folder / "unet")
    return folder


def small(place: Path, networks: Path, root: Path, experiment: str) -> tuple[list[str], list[str]]:
    """Overrides for the data and the teacher, and for the rest of a run."""
    tokens, vector = OF_TEXT[experiment]
    data = [f"data.images={place / 'images'}", f"data.root={root}", "data.val_images=8", "data.image_size=128", LATENT]
    data += [f"data.vae={place / 'sd'}", f"data.text_encoder.model={networks}", f"data.text_encoder.width={tokens}"]
    data += [f"data.text_encoder.pooled_width={vector}"] if experiment == SDXL else []
    of_chatglm = ["data.text_encoder.computed_in=float32", "data.text_encoder.length=24"]
    data += of_chatglm if experiment == KOLORS else []
    data += [f"teacher.model={place / 'dino'}", "teacher.image_size=56", "teacher.grid=[4,4]", "teacher.width=32"]
    rest = [f"backbone.weights={networks}", "trainer.batch_size=4", "trainer.validation_group=2"]
    return data, [*rest, "trainer.max_steps=3", "trainer.validate_every=3", "tracking=none"]


@pytest.mark.slow
@pytest.mark.parametrize("experiment", [SD15, SDXL, pytest.param(KOLORS, marks=needs_sentencepiece)])
def test_an_experiment_runs_from_photographs_to_training(
    compose: Compose, bf16: Any, place: Path, tmp_path: Path, experiment: str
) -> None:
    """The stages of the command in its header, then a run with its precision, in buckets if the track has them."""
    data, rest = small(place, write_networks(tmp_path / "networks", experiment), tmp_path / "cache", experiment)
    name = compose(f"+experiment={experiment}", *data)["data"]["name"]
    parts = compose(f"data={name}", *data, root="preprocess")
    build = Build(assembly.build_part(parts["data"]), assembly.build_part(parts["teacher"]), Part(), batch=8)
    for stage in ("manifest", "images", "latents", "tokens", "text"):
        build.run(stage)
    overrides = [f"+experiment={experiment}", *data, *rest]
    config = compose(*overrides)
    check(config, overrides)
    trainer, _ = trainer_assembly.build(config, tmp_path, bf16, NoShipper())
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    shapes = {tuple(trainer.reader.read(step)[0].x0.shape[1:]) for step in range(9)}
    trainer.fit(0)
    after = dict(trainer.model.named_parameters())
    assert {name for name in before if not torch.equal(before[name], after[name])} == set(trainable(trainer.model))
    row = json.loads(trainer.metrics.path.read_text().splitlines()[-1])
    assert all(0 < row[f"val/{key}"] < 10 for key in ("diffusion", "token", "manifold"))
    squares = {(4, 16, 16)}
    assert shapes == (squares if experiment == SD15 else squares | {(4, 12, 20), (4, 20, 12)})
    trainer.reader.cache.close()
