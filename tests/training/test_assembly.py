"""Parts are built from plain configs, and their errors are passed on unchanged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_runs import small_sd

from urepa.config.declared import declaration_of
from urepa.core.errors import UserError
from urepa.training.assembly import build_loss, build_part, build_random, build_untrained, evaluate_ema

Compose = Callable[..., dict[str, Any]]


def test_parts_get_plain_lists_and_dicts(compose: Compose) -> None:
    loss = build_loss(compose())
    assert type(loss.taps) is dict
    assert type(declaration_of(compose()["optimizer"]).betas) is list


@pytest.mark.parametrize(
    ("part", "override", "words"),
    [
        ("loss", "loss.lambda_max=-1", "^loss.lambda_max and"),
        ("data", "data.image_size=33", "^data.image_size=33 is not a multiple"),
    ],
)
def test_a_constructors_user_error_is_not_wrapped(compose: Compose, part: str, override: str, words: str) -> None:
    config = compose(override)
    build = {"loss": lambda: build_loss(config), "data": lambda: build_part(config["data"])}[part]
    with pytest.raises(UserError, match=words):
        build()


def test_a_networks_user_error_is_not_wrapped(compose: Compose) -> None:
    with pytest.raises(UserError, match="^teacher.grid="):
        build_part(compose("teacher.grid=[9,9]")["teacher"])


@pytest.mark.slow
def test_the_untrained_model_equals_the_run_before_its_first_step(
    compose: Compose, small_run: list[str], build_trainer: Callable[..., Any]
) -> None:
    """Also if another evaluation reads a tap that does not exist."""
    trainer = build_trainer("seed=3", "trainer.max_steps=3")
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.fit(0)
    config = compose(*small_run, "seed=3", "evaluation=cifar10", "evaluation.probe.tap=midd")
    state = torch.get_rng_state()
    model = build_untrained(config, build_part(config["data"]), torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), state), "training draws as if nothing had been built"
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training
    assert any(not torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())


@pytest.mark.slow
def test_a_backbone_with_weights_has_a_random_one_beside_it(tmp_path: Path, compose: Compose) -> None:
    """With the same architecture and prompts, initialised with the run's seed."""
    config = compose(*small_sd(tmp_path))
    track, cpu = build_part(config["data"]), torch.device("cpu")
    own = build_untrained(config, track, cpu)
    random = build_random(config, track, cpu, own)
    again = build_random(config, track, cpu, own)
    other = build_random(config | {"seed": 43}, track, cpu, own)
    values = {name: value for name, value in own.state_dict().items() if "lora" not in name and "heads" not in name}
    assert {n: v.shape for n, v in random.state_dict().items()} == {n: v.shape for n, v in own.state_dict().items()}
    matrices = [name for name, value in values.items() if name.endswith("weight") and value.dim() > 1]
    assert len(matrices) > 20
    assert not any(torch.equal(random.state_dict()[name], values[name]) for name in matrices)
    assert not any(torch.equal(random.state_dict()[name], other.state_dict()[name]) for name in matrices)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in random.state_dict().items())
    prompts = dict(own.named_buffers())
    assert prompts
    assert all(torch.equal(value, prompts[name]) for name, value in random.named_buffers())


@pytest.mark.slow
@pytest.mark.parametrize("has_weights", [False, True])
def test_floors_are_the_initial_backbone_and_a_random_one(
    has_weights: bool, trainer_of: Callable[..., Any], compose: Compose, small_sit: list[str], sit_file: Path
) -> None:
    own = [f"backbone.weights={sit_file}"] if has_weights else []
    asked = [*small_sit, *own, "evaluation=spatial", "evaluation.spatial.images=5"]
    trainer, config = trainer_of(*asked), compose(*asked)
    found = evaluate_ema(config, trainer, build_part(config["data"]), 0)
    assert not found.failures
    assert found.metrics["final/rmsc/untrained_tap"] == found.metrics["final/rmsc/tap"], "nothing has trained here"
    random = found.metrics.get("final/rmsc/random_tap")
    assert (random is not None) == has_weights
    assert random != found.metrics["final/rmsc/tap"]
