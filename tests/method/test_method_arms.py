"""Every arm `method_*` trains on a small repa_cifar10_cpu: its terms are finite and reach backbone and heads, and with
λ = 0 its backbone is that of `loss=none`, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from urepa.cli import CONF
from urepa.training.assembly import build_part

Build = Callable[..., Any]
OTHER = ("schedule.", "teacher._target_", "backbone.class_token")
FILES = {p.stem: yaml.safe_load(p.read_text()) for p in sorted((Path(CONF) / "ablation").glob("method_*.yaml"))}
# a stop acts after more updates than are done here, the weights of other teachers are not here, and a class token is
# denoised whatever λ is (tests/training/test_reg_runs.py)
ARMS = [
    name
    for name, content in FILES.items()
    if "sit" in content["arm"]["families"] and not any(key.startswith(OTHER) for key in content["arm"]["changes"])
]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, compose: Build) -> list[str]:
    """Overrides that make the experiment tiny, on digits as 1x16x16 pixels. Stores of unit and raw tokens exist."""
    overrides = [
        "+experiment=repa_cifar10_cpu",
        "data=digits",
        f"data.root={tmp_path_factory.mktemp('digits')}",
        *("data.limit=40", "data.validation_images=20", "data.test_images=20"),
        *("data.image_size=16", "data.unshuffle=1", "evaluation=none", "trainer.evaluate_every=null"),
        *("teacher=efficientnet_lite0_s16", "teacher.image_size=64", "teacher.grid=[4,4]"),
        *("backbone.depth=5", "backbone.width=32", "backbone.heads=2"),
        *("trainer.batch_size=8", "trainer.validation_group=10", "trainer.max_steps=10", "tracking=none"),
    ]
    for unit_length in ("true", "false"):
        config = compose(*overrides, f"teacher.unit_length={unit_length}")
        build_part(config["data"]).open(build_part(config["teacher"])).close()
    return overrides


def weights(trainer: Any, part: str) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in trainer.model.named_parameters() if k.startswith(part)}


def trained(trainer: Any, steps: int = 3) -> Any:
    """The last of these updates. The learning rate of the first is 0."""
    return [trainer.update(i, trainer.reader.read(i), with_tap_gradients=i == 0) for i in range(steps)][-1]


@pytest.mark.parametrize("arm", ARMS)
def test_a_method_trains_and_with_lambda_0_leaves_the_backbone_alone(
    small: list[str], trainer_of: Build, arm: str
) -> None:
    arm_of = [*small, f"+ablation={arm}", "loss.warmup_steps=0"]
    trainer = trainer_of(*arm_of)
    before = {part: weights(trainer, part) for part in ("backbone", "heads")}
    update = trained(trainer)
    assert all(value.isfinite() for value in update.terms.means().values())
    for part, start in before.items():
        assert (not start and part == "heads") or any(
            not torch.equal(start[k], v) for k, v in weights(trainer, part).items()
        ), part
    assert all(v == v and abs(v) < 1e9 for v in trainer.validate(3).values())
    aligned = weights(trainer, "backbone")
    off = trainer_of(*arm_of, "loss.lambda_max=0")
    trained(off)
    objective = next((w.partition(": ")[2] for w in map(str, _overridden(arm)) if w.startswith("/objective")), None)
    alike = [] if objective is None else [f"objective={objective}", "objective.draw=lognormal"]
    alike += [f"backbone.{key}={value}".replace(" ", "") for key, value in FILES[arm].get("backbone", {}).items()]
    without = trainer_of(*(o for o in small if not o.startswith("teacher")), *alike, "loss=none")
    trained(without)
    found, expected = weights(off, "backbone"), weights(without, "backbone")
    assert all(torch.equal(found[k], expected[k]) for k in expected)
    assert any(not torch.allclose(aligned[k], expected[k], rtol=0, atol=1e-6) for k in expected)


def _overridden(arm: str) -> list[str]:
    """The choices that an arm exchanges, as "/GROUP: NAME"."""
    exchanged = [one for one in FILES[arm].get("defaults", []) if isinstance(one, dict)]
    pairs = [pair for one in exchanged for pair in one.items()]
    return [f"{key.removeprefix('override ')}: {name}" for key, name in pairs if key.startswith("override ")]
