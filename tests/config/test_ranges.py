"""The ranges of numbers in a config."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from math import inf, nan
from typing import Any, get_args, get_type_hints

import pytest

from urepa.config import command_schemas, encoder_schema
from urepa.config.parts import SCHEMAS
from urepa.config.ranges import RANGES, check_numbers
from urepa.core.errors import UserError
from urepa.training.optimizers.adamw import AdamW

Compose = Callable[..., dict[str, Any]]


def numeric_fields() -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every field of every schema whose values are numbers, or lists or mappings of numbers."""
    known = [*vars(command_schemas).values(), *vars(encoder_schema).values()]
    of_commands = [cls for cls in known if is_dataclass(cls) and isinstance(cls, type)]
    for cls in dict.fromkeys([*SCHEMAS.values(), *of_commands]):
        hints = get_type_hints(cls)
        for one in fields(cls):
            if {int, float} & set(leaves(hints[one.name])):
                yield f"{cls.__name__}.{one.name}", one.metadata


def leaves(hint: Any) -> Iterator[Any]:
    arguments = get_args(hint)
    if not arguments:
        yield hint
    for argument in arguments:
        yield from leaves(argument)


def test_every_number_of_every_schema_has_a_range() -> None:
    found = dict(numeric_fields())
    assert len(found) > 100
    assert {"AdamW.lr", "Trainer.threads", "GeneratedImages.steps", "URepaLoss.taps", "Conv.depth"} <= found.keys()
    without = [name for name, about in found.items() if "ge" not in about]
    assert all(name.endswith(("guidance_interval", "classes")) for name in without)


@pytest.mark.fast(9)
@pytest.mark.parametrize("value", [inf, -inf, nan, 1e39])
@pytest.mark.parametrize(
    ("root", "key"),
    [
        ("train", "loss.lambda_max"),
        ("train", "loss.taps.mid"),
        ("train", "optimizer.lr.backbone"),
        ("train", "optimizer.eps"),
        ("train", "tracking.patience"),
        ("train", "trainer.evaluation_share"),
        ("train", "trainer.ema_decay"),
        ("plan", "device.flops_per_s"),
        ("generate", "guidance"),
    ],
)
def test_no_number_is_infinite_or_undefined(compose: Compose, root: str, key: str, value: float) -> None:
    config = compose(root=root)
    check_numbers(config)
    put(config, key, value)
    with pytest.raises(UserError, match=f"^{key}={str(value).replace('+', '.')}: give "):
        check_numbers(config)


def test_numbers_in_lists_and_under_unknown_keys_count_too() -> None:
    for odd in (nan, inf):
        for config in ({"a": {"b": [1.0, odd]}}, {"a": odd}, {"optimizer": {"betas": [0.9, odd]}}):
            with pytest.raises(UserError, match="a finite number"):
                check_numbers(config)
    check_numbers({"a": {"b": [1.0, -2]}, "c": "inf", "d": None, "e": True, "f": [], "g": {}})


def test_only_a_threshold_may_be_infinite(compose: Compose) -> None:
    """conf/loss/repa.yaml sets it: no manifold loss counts as a spike there."""
    check_numbers(put(compose(), "loss.spike_threshold", inf))
    check_numbers(compose("+experiment=repa_cifar10_pixels"))
    for odd in (nan, -inf, -0.1):
        with pytest.raises(UserError, match="loss.spike_threshold=.*: give 0 or more"):
            check_numbers(put(compose(), "loss.spike_threshold", odd))
    assert [name for name, about in numeric_fields() if about.get("le") == inf] == [
        "Haste.spike_threshold",
        "Reg.spike_threshold",
        "Released.spike_threshold",
        "SeveralTerms.spike_threshold",
        "URepaLoss.spike_threshold",
    ]


@pytest.mark.fast(2)
@pytest.mark.parametrize(
    ("key", "most", "said"),
    [
        ("trainer.threads", 1024, "give 1 or more, at most 1,024"),
        ("trainer.max_steps", 99_999_999, "give 1 or more, at most 99,999,999"),
        ("optimizer.lr.backbone", 1.0, "give 0 or more, at most 1"),
        ("evaluation.samples.sampler_steps", 10**6, "at most 1,000,000"),
        ("objective.timesteps", 10**6, "at most 1,000,000"),
        ("teacher.grid", [10**6, 1], "at most 1,000,000"),
    ],
)
def test_large_numbers_are_refused(compose: Compose, key: str, most: Any, said: str) -> None:
    more = [most[0] + 1, 1] if isinstance(most, list) else most + 1
    check_numbers(put(compose("optimizer=adamw_plain"), key, most))
    with pytest.raises(UserError, match=f"{key}=.*{said}$"):
        check_numbers(put(compose(), key, more))


def test_the_last_step_has_a_checkpoint_that_is_found() -> None:
    from urepa.runs.checkpoint_folders import NAME

    last = int(RANGES["trainer.max_steps"][1])
    assert NAME.fullmatch(f"step_{last:08d}")
    assert NAME.fullmatch(f"step_{last + 1:08d}") is None


@pytest.mark.slow
def test_pairs_must_ascend(compose: Compose) -> None:
    check_numbers(compose("objective.beta_start=0.1", "objective.beta_end=0.1"))
    with pytest.raises(UserError, match=r"^objective.beta_start=0.2 is above objective.beta_end=0.1; give a smaller"):
        check_numbers(compose("objective.beta_start=0.2", "objective.beta_end=0.1"))
    config = compose("evaluation=generation")
    for interval in ([0.7, 0.1], [0.1], [0.0, 1.5], [0.0, nan]):
        put(config, "evaluation.generation.images.interval", interval)
        with pytest.raises(UserError, match="evaluation.generation.images.interval"):
            check_numbers(config)


def test_weight_decay_does_not_subtract_more_than_a_weight() -> None:
    """AdamW multiplies each weight by 1 - lr*decay: below -1 it grows without any gradient."""
    rest = {"betas": [0.9, 0.999], "eps": 1e-8, "warmup_ratio": 0.1}
    AdamW(lr={"head": 0.1}, weight_decay={"head": 10.0, "lora": 1e9}, **rest).check()
    with pytest.raises(UserError, match=r"optimizer.lr.head=0.1 x optimizer.weight_decay.head=11.0 .*at most 1$"):
        AdamW(lr={"head": 0.1}, weight_decay={"head": 11.0}, **rest).check()


def put(config: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    *path, last = key.split(".")
    place = config
    for name in path:
        place = place.setdefault(name, {})
    place[last] = value
    return config
