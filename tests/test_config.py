"""Every file in conf/ composes, and its parts can be built."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import get_object
from omegaconf.errors import OmegaConfBaseException

from urepa.cli import CONF

Compose = Callable[..., dict[str, Any]]
GROUPS = (
    "backbone",
    "lora",
    "head",
    "teacher",
    "objective",
    "loss",
    "schedule",
    "data",
    "optimizer",
    "stop_when",
    "trainer",
    "tracking",
)
ROOTS = sorted(p.stem for p in Path(CONF).glob("*.yaml"))


def options(group: str) -> list[str]:
    return sorted(p.stem for p in (Path(CONF) / group).glob("*.yaml"))


def parts(config: Any) -> Iterator[dict[str, Any]]:
    """All nodes of a config that have a target."""
    if isinstance(config, dict):
        if "_target_" in config:
            yield config
        for value in config.values():
            yield from parts(value)


def check_targets(config: dict[str, Any]) -> None:
    """Each target exists and accepts exactly its settings."""
    for part in parts(config):
        target = get_object(part["_target_"])
        given = {k: v for k, v in part.items() if k != "_target_"}
        signature = inspect.signature(target)
        assert not any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()), part["_target_"]
        signature.bind(**given)


@pytest.mark.fast(6)
@pytest.mark.parametrize("root", ROOTS)
def test_every_root_composes(compose: Compose, root: str) -> None:
    check_targets(compose(root=root))


# options that only make sense beside others
COUNTED = ["data.num_classes=2"]  # of a folder that is not here
BESIDE = {("backbone", "sd15"): ["data=track_a"], ("data", "folder"): COUNTED}
BESIDE |= {("data", name): COUNTED for name in options("data") if name.endswith("captions") or "nanodit" in name}
TRANSFORMERS = (
    "repa_sd3",
    "repa_flux",
    "repa_sana",
    "repa_pixart",
    "repa_chroma",
    "repa_auraflow",
    "repa_flux2",
    "repa_lumina2",
    "repa_hidream",
)
CAPTIONED = (
    "captions_smoke",
    "family_smoke",
    "nanodit",
    "nanodit_smoke",
    "nanodit_warm",
    "urepa_sd15_captions",
    "urepa_sdxl",
    "urepa_kolors",
    *TRANSFORMERS,
)
BESIDE |= {("experiment", name): COUNTED for name in CAPTIONED}


@pytest.mark.fast(6)
@pytest.mark.parametrize("experiment", options("experiment"))
def test_every_experiment_composes(compose: Compose, experiment: str) -> None:
    check_targets(compose(f"+experiment={experiment}", *BESIDE.get(("experiment", experiment), [])))


@pytest.mark.fast(12)
@pytest.mark.parametrize(
    ("group", "option"), [(g, o) for g in (*GROUPS, "evaluation") for o in options(g)], ids=lambda x: str(x)
)
def test_every_option_composes(compose: Compose, group: str, option: str) -> None:
    check_targets(compose(f"{group}={option}", *BESIDE.get((group, option), [])))


@pytest.mark.parametrize("group", GROUPS)
def test_every_file_of_a_group_is_a_composable_option(group: str) -> None:
    assert options(group)


@pytest.mark.parametrize("experiment", options("experiment"))
def test_an_experiment_is_short_and_says_what_it_is_for(experiment: str) -> None:
    lines = (Path(CONF) / "experiment" / f"{experiment}.yaml").read_text().splitlines()
    header = " ".join(line for line in lines if line.startswith("#"))
    assert all(word in header for word in ("Claim:", "Command:", "Hours:", "xpected"))
    assert sum(not line.startswith("#") for line in lines) < 20


def test_repas_evaluation_uses_its_sampler(compose: Compose) -> None:
    """The command in the file's header composes, and the figure beside it belongs to 250 steps of the SDE."""
    header = (Path(CONF) / "experiment" / "repa_imagenet256.yaml").read_text()
    asked = next(line for line in header.splitlines() if "evaluation=inception " in line and line.startswith("# Ev"))
    overrides = [word for word in asked.split() if "=" in word]
    evaluation = compose("+experiment=repa_imagenet256", *overrides)["evaluation"]
    for part in ("inception", "inception_score"):
        images = evaluation[part]["images"]
        assert (images["sampler"], images["steps"], images["count"], images["guidance"]) == ("sde", 250, 50_000, 1)


@pytest.mark.parametrize("experiment", ["repa_smoke", "repa_cifar10_pixels"])
def test_commands_on_pixels_need_no_hub(compose: Compose, experiment: str) -> None:
    header = (Path(CONF) / "experiment" / f"{experiment}.yaml").read_text()
    (said,) = re.findall(r"^# Command: python -m urepa.train (.*)$", header, re.MULTILINE)
    data = compose(*said.split())["data"]
    assert (data["source"], data["images"]) == ("folder", "DIR")


KEYS = (
    "seed",
    "loss.lambda_max",
    "loss.manifold_weight",
    "loss.warmup_steps",
    "head.depth",
    "trainer.max_steps",
    "trainer.checkpoint_every",
    "trainer.validate_every",
    "trainer.log_every",
    "trainer.batch_size",
    "data.root",
)


def test_the_keys_that_scripts_count_on_are_there(compose: Compose) -> None:
    from urepa.runs.run_folder import flatten

    assert set(KEYS) <= set(flatten(compose()))


def test_the_documents_values_are_loss_urepas(compose: Compose) -> None:
    loss = compose("loss=urepa")["loss"]
    chosen = {k: loss[k] for k in ("lambda_max", "warmup_steps", "manifold_weight", "level", "taps")}
    assert chosen == {
        "lambda_max": 0.5,
        "warmup_steps": 3000,
        "manifold_weight": 3.0,
        "level": "sample",
        "taps": {"mid": 1.0},
    }


@pytest.mark.parametrize("override", ["loss.lambda_maxx=1", "trainer.max_steps=many", "loss.level=pixel"])
def test_mistakes_fail_while_composing(compose: Compose, override: str) -> None:
    from hydra.errors import HydraException

    with pytest.raises((HydraException, OmegaConfBaseException)):
        compose(override)
