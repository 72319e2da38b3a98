"""Combinations of settings that a composed config must not have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from urepa.core.errors import UserError
from urepa.training.checks.combinations import check, check_effects, check_order, check_ranges, check_trainer

TRAINER = {"trainer": {"max_steps": 10}}
SCHEDULE = {"schedule": {"_target_": "urepa.method.schedules.constant.Constant"}}
NO_LOSS = {"loss": {"_target_": "urepa.method.losses.no_loss.NoLoss"}} | SCHEDULE | TRAINER
A_LOSS = {"loss": {"_target_": "urepa.method.losses.urepa_loss.URepaLoss"}} | SCHEDULE | TRAINER
PROBE: dict[str, Any] = {"_target_": "urepa.evaluation.measures.tap_probe.TapProbe"}
CURVES: dict[str, Any] = {"_target_": "urepa.evaluation.measures.knn.Knn"}
IMAGES: dict[str, Any] = {"_target_": "urepa.evaluation.images.generated_images.GeneratedImages"}


@pytest.fixture(scope="module")
def trainer(compose: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    return compose()["trainer"]


def test_the_quickstart_passes(compose: Callable[..., dict[str, Any]]) -> None:
    check(compose("seed=1"), ["seed=1"])


@pytest.mark.fast(6)
@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("trainer.max_steps", 0, "give 1 or more"),
        ("trainer.log_every", -1, "give 1 or more"),
        ("trainer.threads", 0, "give 1 or more"),
        ("trainer.clip_norm", 0.0, "give more than 0"),
        ("loss.lambda_max", -1.0, "give 0 or more"),
        ("loss.warmup_steps", -1, "give 0 or more"),
        ("optimizer.lr.backbone", -1.0, "give 0 or more"),
        ("optimizer.warmup_ratio", 2.0, "give 0 or more, at most 1"),
        ("optimizer.betas", [0.9], "give two numbers"),
        ("objective.beta_end", 2.0, "give more than 0, less than 1"),
        ("data.limit", -5, "give 1 or more"),
        ("data.unshuffle", 0, "give 1 or more"),
        ("data.cfg_dropout", 1.5, "give 0 or more, at most 1"),
        ("backbone.head_dim", 0, "give 1 or more"),
        ("evaluation.samples.sampler_steps", 0, "give 1 or more"),
        ("evaluation.probe", PROBE | {"timestep": 5000}, "timestep=5000: the objective's timesteps are 0 to 999"),
        (
            "evaluation.probe",
            CURVES | {"timesteps": [500, -1]},
            "timesteps=.500, -1.: the objective's timesteps are 0 to 999",
        ),
        ("evaluation.samples.sampler_steps", 1001, "the objective has 1000 timesteps; give as many or fewer"),
        (
            "evaluation.generation",
            {"images": IMAGES | {"steps": 1001}},
            "images.steps=1001: the objective has 1000 timesteps",
        ),
        ("trainer.evaluate_every", 0, "give 1 or more"),
        ("trainer.evaluation_share", -0.1, "give 0 or more"),
        (
            "evaluation.probe",
            PROBE | {"timestep": 0.5},
            "timestep=0.5: the objective's timesteps are 0 to 999, whole numbers",
        ),
    ],
)
def test_numbers_that_cannot_be_are_refused(
    compose: Callable[..., dict[str, Any]], key: str, value: Any, message: str
) -> None:
    config = compose()
    check_ranges(config)
    *path, last = key.split(".")
    place = config
    for name in path:
        place = place[name]
    place[last] = value
    with pytest.raises(UserError, match=f"{key}.*{message}"):
        check_ranges(config)


def test_a_probes_time_must_be_one_of_the_objective(compose: Callable[..., dict[str, Any]]) -> None:
    config = compose("objective=flow")
    config["evaluation"]["probe"] = PROBE | {"timestep": 0.5}
    check_ranges(config)
    config["evaluation"]["probe"] = PROBE | {"timestep": 100}
    with pytest.raises(UserError, match=r"timestep=100: the objective's times lie in \[0, 1\]"):
        check_ranges(config)


@pytest.mark.slow
def test_a_sampler_takes_at_most_as_many_steps_as_there_are_timesteps(compose: Callable[..., dict[str, Any]]) -> None:
    steps = "evaluation.samples.sampler_steps"
    check_ranges(compose("objective=flow", f"{steps}=1001"))
    check_ranges(compose(f"{steps}=1000"))
    check_ranges(compose(f"{steps}=60", "objective.timesteps=60"))
    with pytest.raises(UserError, match=r"sampler_steps=25: the objective has 20 timesteps"):
        check_ranges(compose("objective.timesteps=20"))


@pytest.mark.slow
def test_adapters_need_a_sit_that_has_been_trained(compose: Callable[..., dict[str, Any]]) -> None:
    overrides = ["backbone=sit_b2", "lora=all_attention", "~loss.taps.mid", "+loss.taps.block_3=1"]
    with pytest.raises(UserError, match="lora on a SiT of random weights would train nothing"):
        check(compose(*overrides), overrides)
    check(compose(*overrides, "backbone.weights=some.pt"), overrides)
    check(compose("backbone=sit_b2", *overrides[2:]), [])
    check(compose("lora=all_attention"), [])


@pytest.mark.fast(1)
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["backbone.patch=8"], r"4x4 patches and the teacher 8x8 tokens.*teacher.grid=\[4, 4\]"),
        (["data.image_size=64"], "16x16 patches and the teacher 8x8"),
        (["teacher=efficientnet_lite0"], "8x8 patches and the teacher 4x4"),
        (["+ablation=sit_irepa_head", "backbone.patch=8"], None),
        (["head=conv", "backbone.patch=8"], None),
        (["loss=none", "backbone.patch=8"], None),
        (["data.image_size=64", "backbone.patch=8"], None),
    ],
)
def test_a_sits_patches_are_the_teachers_tokens(
    compose: Callable[..., dict[str, Any]], overrides: list[str], message: str | None
) -> None:
    given = ["+experiment=repa_cifar10_pixels", *overrides]
    if message is None:
        check(compose(*given), given)
        return
    with pytest.raises(UserError, match=message):
        check(compose(*given), given)


@pytest.mark.fast(1)
@pytest.mark.parametrize("experiment", ["repa_cifar10", "repa_imagenet256"])
def test_latents_patches_too(compose: Callable[..., dict[str, Any]], experiment: str) -> None:
    given = [f"+experiment={experiment}"]
    check(compose(*given), given)
    with pytest.raises(UserError, match="8x8 patches and the teacher 16x16 tokens, which this head compares one by"):
        check(compose(*given, "backbone.patch=4"), given)


def test_null_is_not_accepted_as_a_number(compose: Callable[..., dict[str, Any]]) -> None:
    config = compose("trainer.clip_norm=null", "trainer.threads=null", "data.limit=null")
    check_ranges(config)


def test_taps_are_added_not_replaced() -> None:
    with pytest.raises(UserError, match="would only add"):
        check_effects(A_LOSS, ["loss.taps"])
    check_effects(A_LOSS, ["loss.taps.enc_last"])


@pytest.mark.parametrize(("world", "accumulation", "fits"), [(1, 1, True), (4, 2, True), (3, 1, False), (8, 16, False)])
def test_the_global_batch_divides(trainer: dict[str, Any], world: int, accumulation: int, fits: bool) -> None:
    changed = trainer | {"batch_size": 64, "accumulation": accumulation}
    if fits:
        check_trainer(changed, world)
    else:
        with pytest.raises(UserError, match=f"batch_size=64 .*{world} processes.*multiple of {world * accumulation}"):
            check_trainer(changed, world)


def test_a_warm_up_that_begins_at_the_decay_is_refused(trainer: dict[str, Any]) -> None:
    check_trainer(trainer | {"ema_warmup": True, "ema_decay": 0.11}, 1)
    check_trainer(trainer | {"ema_warmup": False, "ema_decay": 0.1}, 1)
    with pytest.raises(UserError, match=r"ema_warmup=true has no effect with trainer\.ema_decay=0\.1, as the warm-up"):
        check_trainer(trainer | {"ema_warmup": True, "ema_decay": 0.1}, 1)


@pytest.mark.fast(1)
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.evaluation_share=0.5"], "trainer.evaluation_share has no effect without trainer.evaluate_every"),
        (["trainer.evaluate_every=5", "evaluation=none"], "trainer.evaluate_every has no effect with evaluation=none"),
    ],
)
def test_turns_without_evaluations_are_refused(
    compose: Callable[..., dict[str, Any]], overrides: list[str], message: str
) -> None:
    check(compose("trainer.evaluate_every=5", "trainer.evaluation_share=0.5"), ["trainer.evaluation_share=0.5"])
    with pytest.raises(UserError, match=message):
        check(compose(*overrides), overrides)


ONLINE = ("+experiment=repa_cifar10", "data.online_latents=true")


@pytest.mark.fast(2)
@pytest.mark.parametrize(
    "fine", [[], ["data.online_teacher=true"], ["data.stage_to=/tmp"], ["loss=none"], ["data.token_dtype=int8"]]
)
def test_settings_with_an_effect_beside_online_latents_pass(
    compose: Callable[..., dict[str, Any]], fine: list[str]
) -> None:
    check(compose(*ONLINE, *fine), [*ONLINE, *fine])


@pytest.mark.fast(2)
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.latents=mine"], "data.latents has no effect with data.online_latents=true"),
        (["data.online_teacher=true", "data.tokens=mine"], "data.tokens has no effect with data.online_teacher=true"),
        (
            ["data.online_teacher=true", "data.token_dtype=int8"],
            "data.token_dtype has no effect",
        ),
        (["data.online_teacher=true", "data.stage_to=/tmp"], "data.stage_to has no effect here: there is no cache"),
        (["loss=none", "data.stage_to=/tmp"], "data.stage_to has no effect here: there is no cache"),
        (["loss=none", "data.online_teacher=true"], "data.online_teacher has no effect with loss=none"),
    ],
)
def test_settings_of_caches_are_refused_with_online_encoders(
    compose: Callable[..., dict[str, Any]], overrides: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        check(compose(*ONLINE, *overrides), [*ONLINE, *overrides])


@pytest.mark.parametrize(
    "key", ["head", "head.depth", "teacher", "teacher.grid", "schedule", "schedule.final", "optimizer.lr.head"]
)
def test_keys_without_effect_are_refused_where_there_is_no_loss(key: str) -> None:
    with pytest.raises(UserError, match=f"{key} has no effect with loss=none"):
        check_effects(NO_LOSS, [key])
    check_effects(A_LOSS, [key])
    check_effects(NO_LOSS, ["optimizer.lr.backbone", "headless", "seed"])


@pytest.mark.fast(1)
@pytest.mark.parametrize(("lam", "typed"), [(0, ["schedule=cosine"]), (0, ["schedule=cosine", "schedule.final=0.1"])])
def test_a_schedule_of_a_lambda_that_is_0_is_refused(
    compose: Callable[..., dict[str, Any]], lam: float, typed: list[str]
) -> None:
    check(compose(*typed), typed)
    overrides = [f"loss.lambda_max={lam}", *typed]
    with pytest.raises(
        UserError, match=r"^schedule has no effect with loss\.lambda_max=0, which it multiplies; drop it$"
    ):
        check(compose(*overrides), overrides)


def test_a_stop_spares_the_teacher_of_a_control_too(compose: Callable[..., dict[str, Any]]) -> None:
    overrides = ["loss.lambda_max=0", "schedule.stop_step=50"]
    check(compose(*overrides), overrides)


def test_an_arm_before_its_experiment_is_refused() -> None:
    with pytest.raises(UserError, match=r"write \+experiment=... first"):
        check_order(["+ablation=x", "seed=1", "+experiment=y"])
    for fine in (["+experiment=y", "+ablation=x"], ["+ablation=x"], ["+experiment=y"], []):
        check_order(fine)
