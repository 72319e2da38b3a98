"""REPA on SD3, Flux, Sana and PixArt with captions: the experiments' settings, the example of SimpleTuner's page with
each, and their costs and methodology at full size. tests/process/test_transformer_chain.py runs them at small sizes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from urepa.config.simpletuner import expand_simpletuner
from urepa.core.nested_dicts import flatten
from urepa.costs.estimate import Device, plan
from urepa.prefetch import required_files
from urepa.reports.description.markdown_and_latex import as_markdown
from urepa.reports.description.methodology import methodology
from urepa.reports.description.subject import subject_of
from urepa.training.checks.combinations import check

Compose = Callable[..., dict[str, Any]]
ELSEWHERE = ("data.images=DIR", "data.num_classes=1", "data.train_images=2000", "data.val_images=100")
H200 = Device("H200", "cuda", 790e12, 141e9)


@dataclass(frozen=True)
class Expected:
    """tap, objective and weights of a family's experiment; rows of its tap's grid at 1024 px; parameters of its
    transformer, by their published number, of its adapters and of D, the width of its tap."""

    block: int
    objective: str
    hub: str
    vae: str
    rows: int
    parameters: int
    adapters: int
    width: int


FLUX, PIXART, SANA = (
    "black-forest-labs/FLUX.1-dev",
    "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS",
    "Efficient-Large-Model/Sana",
)
EXPECTED = {
    # adapters of rank 8 by hand: 24 blocks of 8 projections 1536 x 1536, the last without its text's output
    "sd3": Expected(
        *(8, "FlowShifted", "stabilityai/stable-diffusion-3-medium-diffusers"),
        *("stabilityai/stable-diffusion-3.5-medium", 64, 2_028_328_000, (24 * 8 - 1) * 8 * 2 * 1536, 1536),
    ),
    # 19 double-stream blocks of 8 projections 3072 x 3072, 38 single-stream ones of 3
    "flux": Expected(8, "FlowBySize", FLUX, FLUX, 64, 11_901_408_320, (19 * 8 + 38 * 3) * 8 * 2 * 3072, 3072),
    # self-attention and cross-attention of 4 projections: 20 blocks of 2240, 28 of 1152
    "sana": Expected(
        *(10, "FlowShifted", f"{SANA}_1600M_1024px_diffusers", f"{SANA}_1600M_1024px_BF16_diffusers"),
        *(32, 1_604_462_752, 20 * 2 * 4 * 8 * 2 * 2240, 2240),
    ),
    "pixart": Expected(10, "DDPMEpsilon", PIXART, PIXART, 64, 610_856_096, 28 * 2 * 4 * 8 * 2 * 1152, 1152),
}
EVERY = pytest.mark.parametrize("family", EXPECTED)
# of SimpleTuner's page on REPA and U-REPA; it names block 10 for Sana and PixArt
EXAMPLE = {
    "crepa_enabled": True,
    "crepa_lambda": 0.5,
    "crepa_encoder": "dinov2_vitg14",
    "crepa_encoder_image_size": 518,
}
DECAYS = {"crepa_scheduler": "cosine", "crepa_warmup_steps": 100, "crepa_decay_steps": 5000, "crepa_lambda_end": 0.0}


def given(family: str, *more: str) -> list[str]:
    return [f"+experiment=repa_{family}", *ELSEWHERE, *more]


@pytest.mark.fast(1)
@EVERY
def test_the_values_are_simpletuners(compose: Compose, family: str) -> None:
    expected, config = EXPECTED[family], compose(*given(family))
    check(config, given(family))
    loss, teacher, data, trainer = (config[part] for part in ("loss", "teacher", "data", "trainer"))
    assert (loss["lambda_max"], loss["warmup_steps"], loss["manifold_weight"]) == (0.5, 0, 0.0)
    assert (loss["grid"], loss["taps"]) == ("teacher", {f"block_{expected.block}": 1.0})
    assert (teacher["model"], teacher["image_size"], teacher["grid"]) == ("facebook/dinov2-giant", 518, [37, 37])
    assert (data["teacher_sees"], data["captions"], config["lora"]["blocks"]) == ("decoded", "files", "all")
    assert config["head"] == {"_target_": "urepa.method.heads.layer_norm_linear.LayerNormLinear"}
    assert (trainer["precision"], trainer["frozen"], config["backbone"]["gradient_checkpointing"]) == (
        *("bf16", "bf16"),
        True,
    )
    assert config["objective"]["_target_"].endswith(f".{expected.objective}")
    assert (config["backbone"]["weights"], data["vae"]) == (expected.hub, expected.vae)


@pytest.mark.fast(1)
@EVERY
def test_the_tracks_teacher_is_the_experiments(compose: Compose, family: str) -> None:
    """So the command in its header makes the tokens that the run reads."""
    config = compose(*given(family))
    parts = compose(f"data={config['data']['name']}", *ELSEWHERE, root="preprocess")
    assert (parts["data"], parts["teacher"]) == (config["data"], config["teacher"])
    files = required_files(compose(*given(family), root="prefetch"))
    expected = EXPECTED[family]
    assert files.keys() == {expected.hub, expected.vae, "facebook/dinov2-giant"}
    assert "transformer/config.json" in files[expected.hub]
    assert {"vae/config.json", "text_encoder/config.json"} <= set(files[expected.vae])


@pytest.mark.fast(2)
@pytest.mark.parametrize("decays", [False, True])
@EVERY
def test_the_pages_example_changes_what_it_names(compose: Compose, tmp_path: Path, family: str, decays: bool) -> None:
    """The experiments have its values already: nothing but the decay changes. Sana's tap has fewer tokens than the
    teacher, and they are compared on its grid."""
    content = EXAMPLE | {"crepa_block_index": EXPECTED[family].block} | (DECAYS if decays else {})
    (file := tmp_path / "config.json").write_text(json.dumps(content))
    before = flatten(compose(*given(family)))
    overrides = expand_simpletuner([*given(family), f"+simpletuner={file}"], "train")
    config = compose(*overrides)
    check(config, overrides)
    after = flatten(config)
    differ = {key for key in before.keys() | after.keys() if before.get(key, ...) != after.get(key, ...)}
    changed: dict[str, Any] = {"loss.grid": "smaller"} if family == "sana" else {}
    if decays:
        target = "urepa.method.schedules.cosine.Cosine"
        changed |= {"loss.warmup_steps": 100, "schedule._target_": target, "schedule.final": 0.0}
        changed |= {"schedule.decay_steps": 5000}
    assert {key: after[key] for key in differ} == changed


@pytest.mark.slow  # minutes each: in one bucket, as its step is the same in the others
@EVERY
def test_an_experiment_is_planned_and_described_at_full_size(compose: Compose, family: str) -> None:
    """Without weights. The head is a LayerNorm over the tap's channels and one dense layer."""
    expected, config = EXPECTED[family], compose(*given(family, "data.buckets=null"))
    planned = plan(config, H200)
    parts = planned.counted.parameters
    backbone = sum(parts[part]["all"] for part in ("embedding", "blocks", "output"))
    assert backbone == expected.parameters + expected.adapters
    assert {part: counts["trainable"] for part, counts in parts.items() if counts["trainable"]} == {
        "blocks": expected.adapters,
        "head": (expected.width + 1) * 1536 + 2 * expected.width,
    }
    assert planned.counted.taps[f"block_{expected.block}"] == (expected.rows, expected.rows, expected.width)
    tokens = next(cache for cache in planned.counted.caches if cache.name == "tokens")
    assert tokens.record_bytes == pytest.approx(37 * 37 * 1536 * 2, rel=1e-3)
    text = as_markdown("x", methodology(subject_of(config, planned), "")).replace("\\_", "_")
    assert expected.hub in text
    assert f"{expected.adapters:,}" in text
