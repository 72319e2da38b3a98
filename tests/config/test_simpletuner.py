"""`+simpletuner=FILE`: a SimpleTuner config becomes overrides; λ is SimpleTuner's at every step; the command line takes
precedence; settings without an equivalent are refused."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from urepa import cli
from urepa.config.declared import declaration_of
from urepa.config.simpletuner import expand_simpletuner
from urepa.core.errors import UserError
from urepa.method.step_schedules import linear_warmup
from urepa.runs.run_folder import run_name
from urepa.training.checks.combinations import check

Compose = Callable[..., dict[str, Any]]
Expand = Callable[..., list[str]]
UREPA: dict[str, Any] = {"urepa_enabled": True}
CREPA: dict[str, Any] = {"crepa_enabled": True}
SIT = "+experiment=repa_cifar10"
SD3 = ["+experiment=repa_sd3", "data.images=DIR", "data.num_classes=1", "data.train_images=100"]
UNET = ["loss=urepa_token", "head=layer_norm_linear"]
DEFAULT_TEACHER = ["teacher=dinov2_g", "schedule=constant", "teacher.grid=[37,37]", "loss.grid=smaller"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "a, b=1.json"


@pytest.fixture
def expand(file: Path, compose: Compose) -> Expand:
    """expand(content, *arguments): the overrides that replace a file with this content. `compose` has registered the
    schemas."""

    def expand(content: Any, *arguments: str, root: str = "train") -> list[str]:
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        expanded = expand_simpletuner([*arguments, f"+simpletuner={file}"], root)
        assert expanded[: len(arguments)] == list(arguments)
        return expanded[len(arguments) :]

    return expand


# --- what is taken ----------------------------------------------------------------------------------------------


@pytest.mark.fast(1)
@pytest.mark.parametrize(
    ("content", "arguments", "overrides"),
    [
        (UREPA, [], [*UNET, *DEFAULT_TEACHER]),
        (
            {"--urepa_enabled": "true", "--urepa_lambda": "0.25", "urepa_manifold_weight": 0, "urepa_warmup_steps": 100}
            | {"urepa_model": "dinov2_vits14", "urepa_encoder_image_size": 224, "urepa_use_tae": False},
            [],
            [
                *UNET,
                "teacher=dinov2_s",
                "schedule=constant",
                "loss.lambda_max=0.25",
                "loss.manifold_weight=0",
                "loss.warmup_steps=100",
                "teacher.image_size=224",
                "loss.grid=smaller",
            ],
        ),
        (
            UREPA
            | {"urepa_lambda": 0, "urepa_scheduler": "cosine", "urepa_cutoff_step": 7, "crepa_encoder": "dinov2_s"},
            [],
            [*UNET, "teacher=dinov2_s", "loss.lambda_max=0", "teacher.grid=[37,37]", "loss.grid=smaller"],
        ),
        (
            UREPA | {"urepa_scheduler": "polynomial", "urepa_lambda_end": 0.1, "urepa_decay_steps": 500},
            [],
            [
                *UNET,
                "teacher=dinov2_g",
                "schedule=polynomial",
                "teacher.grid=[37,37]",
                "schedule.final=0.2",
                "schedule.decay_steps=500",
                "schedule.power=1",
                "loss.grid=smaller",
            ],
        ),
        (
            UREPA
            | {"urepa_similarity_threshold": 0.7, "urepa_threshold_mode": "recoverable", "urepa_cutoff_step": 600}
            | {"urepa_scheduler": "linear", "urepa_similarity_ema_decay": 0.9},
            [],
            [
                *UNET,
                "teacher=dinov2_g",
                "schedule=similarity_cutoff",
                "schedule@schedule.shape=linear",
                "teacher.grid=[37,37]",
                "schedule.threshold=0.7",
                "schedule.ema_decay=0.9",
                "schedule.recoverable=true",
                "schedule.stop_step=600",
                "loss.grid=smaller",
            ],
        ),
        (
            UREPA | {"irepa_enabled": True, "irepa_spatial_norm_alpha": 0.8},
            [],
            ["loss=urepa_token", "head=irepa", *DEFAULT_TEACHER, "loss.spatial_norm=0.8"],
        ),
        (
            CREPA | {"crepa_block_index": 4, "crepa_drop_vae_encoder": True, "crepa_encoder": "dinov2-vitb14"},
            [SIT],
            [
                "loss=repa",
                "head=layer_norm_linear",
                "teacher=dinov2_b",
                "schedule=constant",
                "~loss.taps.block_7",
                "+loss.taps.block_4=1.0",
                "teacher.grid=[37,37]",
                "data.teacher_sees=decoded",
                "loss.grid=smaller",
            ],
        ),
        (
            CREPA | {"crepa_block_index": 7, "crepa_lambda": 0.5, "urepa_lambda": 3, "crepa_feature_source": "encoder"},
            [SIT],
            [
                "loss=repa",
                "head=layer_norm_linear",
                *DEFAULT_TEACHER[:3],
                "data.teacher_sees=decoded",
                "loss.grid=smaller",
            ],
        ),
        (
            CREPA | {"crepa_block_index": 7, "crepa_encoder_image_size": 224, "crepa_spatial_align": False},
            [SIT],
            [
                *("loss=repa", "head=layer_norm_linear", "teacher=dinov2_g", "schedule=constant"),
                *("teacher.image_size=224", "data.teacher_sees=decoded"),
            ],
        ),
        (
            CREPA
            | {"crepa_lambda": 0.25, "crepa_scheduler": "linear", "crepa_warmup_steps": 100}
            | {"crepa_lambda_end": 0.05, "crepa_decay_steps": 5000, "crepa_cutoff_step": 6000}
            | {"crepa_similarity_threshold": 0.6, "crepa_threshold_mode": "recoverable", "crepa_block_index": 23},
            SD3,
            [
                *("loss=repa", "head=layer_norm_linear", "teacher=dinov2_g", "schedule=similarity_cutoff"),
                *("schedule@schedule.shape=linear", "loss.lambda_max=0.25", "~loss.taps.block_7"),
                *("+loss.taps.block_23=1.0", "loss.warmup_steps=100", "teacher.grid=[37,37]"),
                *("data.teacher_sees=decoded", "schedule.threshold=0.6", "schedule.recoverable=true"),
                *("schedule.shape.final=0.2", "schedule.shape.decay_steps=5000", "schedule.stop_step=6000"),
            ],
        ),
        (
            CREPA | {"crepa_use_tae": True, "crepa_teacher_block_index": 3, "crepa_model": "dinov2_vitl14_reg"},
            [SIT, "data.tae=taesd", "loss=repa"],
            [
                *("head=layer_norm_linear", "teacher=dinov2_l_registers", "schedule=constant"),
                *("teacher.grid=[37,37]", "data.teacher_sees=tae_decoded"),
            ],
        ),
    ],
    ids=[
        "defaults",
        "values",
        "lambda_0",
        "polynomial",
        "cutoff",
        "irepa",
        "crepa",
        "crepa_defaults",
        "equal_grids",
        "sd3",
        "tae",
    ],
)
def test_settings_become_overrides(
    content: dict[str, Any], arguments: list[str], overrides: list[str], expand: Expand, compose: Compose
) -> None:
    found = expand(content, *arguments)
    assert found == overrides
    expected = {"taps": {"mid": 1.0}, "level": "token", "grid": "smaller", "manifold_diagonal": True}
    loss = compose(*arguments, *found)["loss"]
    assert {key: loss[key] for key in expected} == expected or arguments[:1] in ([SIT], SD3[:1])


@pytest.mark.fast(1)
@pytest.mark.parametrize("content", [UREPA, CREPA | {"crepa_block_index": 5}], ids=["urepa", "crepa"])
def test_a_run_has_plain_overrides(content: dict[str, Any], expand: Expand, compose: Compose, file: Path) -> None:
    """The run is found again by these overrides, and they pass the checks before the first step."""
    given = [] if content is UREPA else [SIT, "data.root=nowhere", "trainer.batch_size=32"]
    overrides = [*given, *expand(content, *given)]
    check(compose(*overrides), overrides)
    assert run_name(overrides, 0) == run_name([*given, *expand(content, *given)], 0)
    assert "simpletuner" not in run_name(overrides, 0)
    assert not any(file.name in override for override in overrides)


@pytest.mark.slow
def test_the_command_line_is_read_with_it(
    expand: Expand, file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = UREPA | {"urepa_lambda": 0.3, "learning_rate": 1, "model_family": "sdxl", "crepa_lambda": 1}
    overrides = expand(content | {"urepa_power": 2, "urepa_use_tae": True})
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["train", f"+simpletuner={file}", "seed=3", "schedule=linear"])
    cli._read_arguments("train")
    assert sys.argv[1:] == ["seed=3", "schedule=linear", *(o for o in overrides if o != "schedule=constant")]
    told = capsys.readouterr().err.splitlines()
    assert told[0] == f"{file}: urepa_enabled=true, urepa_lambda=0.3; the rest as SimpleTuner's defaults"
    assert told[1].startswith(
        "as overrides: loss=urepa_token head=layer_norm_linear teacher=dinov2_g loss.lambda_max=0.3"
    )
    assert told[2:] == [
        "not taken, as the command line gives it: schedule, schedule.stop_step",
        "without effect here: urepa_power, urepa_use_tae",
        "keys of a regulariser that is not enabled: 1",
        "keys that are not of alignment, not taken: 2",
    ]


@pytest.mark.slow
def test_the_command_line_wins(expand: Expand) -> None:
    content = UREPA | {"urepa_scheduler": "cosine", "urepa_similarity_threshold": 0.5, "urepa_lambda": 0.1}
    found = expand(content, "schedule=constant", "teacher=efficientnet_lite0", "loss.lambda_max=0.4", "~loss.taps.mid")
    assert found == [*UNET, "loss.grid=smaller"]
    swept = expand(content, "-m", "loss.lambda_max=0,0.5", "seed=0,1", "schedule=constant")
    assert swept == [*UNET, "teacher=dinov2_g", "teacher.grid=[37,37]", "loss.grid=smaller"]
    assert "loss.lambda_max=0.1" in expand(content, "schedule.threshold=0.6")
    assert "schedule=similarity_cutoff" in expand(content, "schedule.threshold=0.6")


def test_simpletuners_defaults_do_not_override_an_arm(expand: Expand, compose: Compose) -> None:
    given = ["+ablation=lambda_0", "teacher=efficientnet_lite0"]
    overrides = [*given, *expand(UREPA, *given)]
    assert compose(*overrides)["loss"]["lambda_max"] == 0
    assert not any(o.startswith("loss.lambda") for o in overrides)


def test_without_simpletuner_nothing_changes() -> None:
    assert expand_simpletuner(["seed=1", "-m"], "train") == ["seed=1", "-m"]
    for root in ("evaluate", "generate_checkpoint"):  # they take none of it, and say so
        assert expand_simpletuner(["+simpletuner=a.json"], root) == ["+simpletuner=a.json"]


# --- λ ----------------------------------------------------------------------------------------------------------

MAX_STEPS = 300


def theirs(content: dict[str, Any], step: int) -> float:
    """The weight at a step, as their documentation describes it: linear from 0 over the warm-up, then a decay to
    lambda_end that ends at decay_steps, or with the run if that is 0; 0 from cutoff_step on."""
    value = {"lambda": 0.5, "warmup_steps": 0, "decay_steps": 0, "lambda_end": 0.0, "cutoff_step": 0, "power": 1.0}
    value |= {key.removeprefix("urepa_"): v for key, v in content.items() if not isinstance(v, bool | str)}
    peak, warmup, end = value["lambda"], value["warmup_steps"], value["lambda_end"]
    kind = content.get("urepa_scheduler", "constant")
    if value["cutoff_step"] and step >= value["cutoff_step"]:
        return 0.0
    if step < warmup:
        return peak * step / warmup
    last = value["decay_steps"] or MAX_STEPS
    p = min((step - warmup) / max(last - warmup, 1), 1.0)
    return {
        "constant": peak,
        "linear": peak - (peak - end) * p,
        "cosine": end + (peak - end) * 0.5 * (1 + math.cos(math.pi * p)),
        "polynomial": end + (peak - end) * (1 - p) ** value["power"],
    }[kind]


@pytest.mark.fast(2)
@pytest.mark.parametrize(
    "content",
    [
        {"urepa_warmup_steps": 40},
        {"urepa_scheduler": "linear", "urepa_lambda": 0.8, "urepa_lambda_end": 0.2},
        {"urepa_scheduler": "cosine", "urepa_warmup_steps": 30, "urepa_decay_steps": 200},
        {"urepa_scheduler": "polynomial", "urepa_power": 3, "urepa_lambda_end": 0.05, "urepa_decay_steps": 250},
        {"urepa_scheduler": "polynomial", "urepa_warmup_steps": 10},
        {"urepa_scheduler": "cosine", "urepa_cutoff_step": 120, "urepa_lambda_end": 0.1},
        {"urepa_scheduler": "linear", "urepa_similarity_threshold": 1.0, "urepa_lambda_end": 0.1},
    ],
)
def test_lambda_equals_simpletuners_at_every_step(content: dict[str, Any], expand: Expand, compose: Compose) -> None:
    config = compose(*expand(UREPA | content), f"trainer.max_steps={MAX_STEPS}")
    loss, schedule = declaration_of(config["loss"]), declaration_of(config["schedule"])
    lengths = {"warmup_steps": loss.warmup_steps, "max_steps": MAX_STEPS}
    for step in range(MAX_STEPS):
        ours = linear_warmup(step, loss.lambda_max, loss.warmup_steps) * schedule.share(step, **lengths)
        assert ours == pytest.approx(theirs(content, step), rel=1e-9, abs=1e-12), step


# --- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "arguments", "said"),
    [
        (CREPA, [], "enables crepa, and this backbone is a U-Net, which urepa_.* is for: choose another backbone"),
        (UREPA, [SIT], "enables urepa, and this backbone is a transformer, which crepa_.* is for"),
        (UREPA | CREPA, [], "enables both urepa and crepa"),
        ({"urepa_enabled": False, "urepa_lambda": 1}, [], "enables neither urepa nor crepa"),
        ({"learning_rate": 1}, [], "enables neither"),
        (UREPA | {"urepa_colour": 3}, [], "urepa_colour=3 has no equal; take it out of the file"),
        (UREPA, ["loss=none"], "has no effect beside a loss without alignment; drop one of the two"),
        (UREPA | {"layersync_enabled": True}, [], "layersync_enabled=True aligns two of the model's own blocks"),
        (
            UREPA | {"urepa_model": "resnet50"},
            [],
            "urepa_model=resnet50 has no equal among the teachers; there are dino",
        ),
        (UREPA | {"urepa_encoder_image_size": 500}, [], "is no multiple of the encoder's patch of 14 pixels"),
        (
            UREPA | {"urepa_scheduler": "cosin"},
            [],
            "has no equal; there are constant, .* [(]did you mean 'cosine'[?][)]",
        ),
        (
            UREPA | {"urepa_scheduler": "linear", "urepa_lambda_end": 0.6},
            [],
            "is more than urepa_lambda=0.5, and λ does",
        ),
        (UREPA | {"urepa_threshold_mode": "often"}, [], "there are permanent, recoverable"),
        (UREPA | {"urepa_lambda": "much"}, [], "urepa_lambda=much is no number"),
        (UREPA | {"urepa_warmup_steps": 0.5}, [], "urepa_warmup_steps=0.5 is no whole number"),
        ({"urepa_enabled": "perhaps"}, [], "urepa_enabled=perhaps is neither true nor false"),
        (UREPA | {"irepa_enabled": True, "irepa_projector_kernel_size": 5}, [], "has no equal: the convolution is 3x3"),
        (
            CREPA | {"crepa_spatial_align": False},
            [SIT],
            r"different numbers of them \(256 and 1,369 here\), for which there is no equal",
        ),
        (CREPA | {"crepa_spatial_align": False}, SD3, r"\(4,096 and 1,369 here\), for which"),
        (CREPA | {"crepa_block_index": 24}, SD3, "crepa_block_index=24 is too high: .* it has block_0 to block_23"),
        (CREPA | {"crepa_block_index": 12}, [SIT], "crepa_block_index=12 is too high: .*"),
        (CREPA | {"crepa_adjacent_distance": 3}, SD3, "crepa_adjacent_distance=3 is for the frames of a video"),
        (CREPA | {"crepa_cumulative_neighbors": True}, [SIT], "crepa_cumulative_neighbors=True is for the frames of"),
        (UREPA, SD3, "enables urepa, and this backbone is a transformer, which crepa_.* is for"),
        (CREPA | {"crepa_use_backbone_features": True}, [SIT], "the model's own features"),
        (CREPA | {"crepa_feature_source": "self_flow"}, [SIT], "crepa_feature_source=self_flow takes the model's own"),
        ("{", [], "is no JSON"),
        ([1], [], "holds no keys"),
        (UREPA, ["-m", "+experiment=cifar10,captions_smoke"], "choose experiment without a sweep"),
        (UREPA, ["+simpletuner=more.json"], "takes one file"),
    ],
)
def test_settings_without_an_equivalent_are_refused(
    content: Any, arguments: list[str], said: str, expand: Expand
) -> None:
    with pytest.raises(UserError, match=said) as raised:
        expand(content, *arguments)
    assert "\n" not in str(raised.value)


def test_a_missing_file_is_reported() -> None:
    with pytest.raises(UserError, match=r"\+simpletuner=nowhere.json cannot be read [(]No such file or directory[)]"):
        expand_simpletuner(["+simpletuner=nowhere.json"], "plan")
