"""The defaults of evaluations: the run's own tap, half way to noise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose as compose_root
from hydra import initialize_config_dir
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationResolutionError

from urepa.cli import CONF, prepare
from urepa.config.command_line import quote_argument
from urepa.runs.run_folder import to_plain

EVERY = "evaluation=[alignment,knn,linear_probe,spatial,dense]"
Compose = Callable[..., dict[str, Any]]


@pytest.mark.fast(2)
@pytest.mark.parametrize(
    ("overrides", "tap", "times"),
    [
        (["+experiment=cifar10"], "mid", [50, 200, 350, 500, 650, 800, 950]),
        (["+experiment=cifar10", "objective.timesteps=100"], "mid", [5, 20, 35, 50, 65, 80, 95]),
        (["+experiment=repa_cifar10_pixels"], "block_3", [0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95]),
        (["+experiment=repa_imagenet256"], "block_7", [0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95]),
    ],
)
def test_evaluations_fit_the_backbone_and_the_objective(
    compose: Compose, overrides: list[str], tap: str, times: list[float]
) -> None:
    found = compose(*overrides, EVERY)["evaluation"]
    assert {settings["tap"] for settings in found.values()} == {tap}
    assert {settings["timestep"] for settings in found.values()} == {times[3]}
    assert found["alignment"]["timesteps"] == times
    assert type(found["knn"]["timestep"]) is type(times[0])


def of_run(*overrides: str) -> dict[str, Any]:
    prepare()
    with initialize_config_dir(CONF, version_base="1.3"):
        return to_plain(compose_root("evaluate", list(overrides)))


def test_a_run_is_evaluated_at_its_own_tap_and_time(compose: Compose, tmp_path: Path) -> None:
    config = compose("+experiment=repa_cifar10_pixels")
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    found = of_run(f"run={tmp_path}", EVERY)["evaluation"]
    assert (found["knn"]["tap"], found["dense"]["timestep"]) == ("block_3", 0.5)


@pytest.mark.slow
def test_a_tracks_classifier_is_read_from_the_runs_own_root(compose: Compose, tmp_path: Path) -> None:
    config = compose("+experiment=repa_cifar10_pixels", "data.root=/there/it was", "evaluation=cifar10_fd")
    place = {
        "_target_": "urepa.evaluation.encoders.cifar_cnn.CifarCNN",
        "weights": "/there/it was/cifar_cnn.safetensors",
    }
    assert config["evaluation"]["generation"]["encoders"]["cifar_cnn"] == place
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    found = of_run(f"run={tmp_path}", "evaluation=cifar10_fd")["evaluation"]["generation"]
    assert found == config["evaluation"]["generation"]


@pytest.mark.slow
def test_on_the_data_of_another_run_the_classifier_is_that_of_its_track(compose: Compose, tmp_path: Path) -> None:
    """Also in a folder whose name Hydra would not read as it is typed."""
    config = compose("+experiment=cifar10", "data.root=/base", "evaluation=none")
    (base := tmp_path / "cifar10,data.root=base-1f").mkdir()
    (base / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    nested = "evaluation@evaluation.elsewhere.evaluations=[classified,cifar10_fd]"
    both = ("+experiment=cifar10", "data.root=/own", "evaluation=[cifar10_fd,elsewhere]", nested)
    found = compose(*both)["evaluation"]
    assert found["elsewhere"]["evaluations"]["classified"]["classifier"]["weights"] == "/own/cifar_cnn.safetensors"
    run = quote_argument(f"evaluation.elsewhere.run={base}")
    found = compose("+experiment=cifar10", "data.root=/own", "evaluation=[cifar10_fd,elsewhere]", nested, run)[
        "evaluation"
    ]
    there, here = "/base/cifar_cnn.safetensors", "/own/cifar_cnn.safetensors"
    assert found["generation"]["encoders"]["cifar_cnn"]["weights"] == here
    assert found["elsewhere"]["evaluations"]["classified"]["classifier"]["weights"] == there
    assert found["elsewhere"]["evaluations"]["generation"]["encoders"]["cifar_cnn"]["weights"] == there


@pytest.mark.parametrize(
    ("overrides", "said"), [([], "say which run"), (["run=nowhere"], "run=nowhere does not exist")]
)
def test_without_a_run_the_defaults_are_unknown(overrides: list[str], said: str) -> None:
    with pytest.raises(InterpolationResolutionError, match=said):
        of_run(*overrides, EVERY)


@pytest.mark.slow
def test_the_ceiling_of_the_dense_probe_is_the_runs_own_teacher(compose: Compose, tmp_path: Path) -> None:
    config = compose("+experiment=repa_cifar10_pixels")
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    assert of_run(f"run={tmp_path}", "evaluation=dense")["evaluation"]["dense"]["teacher"] == config["teacher"]
    dino = "+teacher@evaluation.dense.teacher=dinov2_b"
    assert of_run(f"run={tmp_path}", "evaluation=dense", dino)["evaluation"]["dense"]["teacher"]["family"] == "dinov2"
    several = ("teacher=several", "+teacher@teacher.teachers.b=clip_l", "+teacher@teacher.teachers.a=dinov2_b")
    found = compose("evaluation=dense", *several)
    assert found["evaluation"]["dense"]["teacher"] == found["teacher"]["teachers"]["b"], "the first of several"
    alone = ("loss=none", "evaluation=dense", "evaluation.dense.tap=mid")
    with pytest.raises(
        InterpolationResolutionError, match="this loss has no teacher: give an encoder as upper reference"
    ):
        compose(*alone)
    assert compose(*alone, dino)["evaluation"]["dense"]["teacher"]["width"] == 768
    assert compose(*alone, "evaluation.dense.teacher=null")["evaluation"]["dense"]["teacher"] is None


def test_without_alignment_the_tap_must_be_given(compose: Compose) -> None:
    with pytest.raises(InterpolationResolutionError, match="loss=none aligns no tap: give the tap to evaluate"):
        compose("loss=none", "evaluation=knn")
    assert compose("loss=none", "evaluation=knn", "evaluation.knn.tap=mid")["evaluation"]["knn"]["timestep"] == 500
