"""Stored configs of earlier versions become configs of this version."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from earlier_forms import ENCODERS, without

from urepa.config.parts import SCHEMAS
from urepa.core.errors import UserError
from urepa.core.nested_dicts import flatten
from urepa.models.teachers.vit import check_vit
from urepa.runs.run_folder import facts_of
from urepa.runs.upgrades import DECLARED, KEY, PLACES, SCHEMA, STEPS, add_schema_number, upgrade, upgrade_flat

VIT = "urepa.teachers.vit.ViT"
DINO = {"_target_": VIT, "family": "dinov2", "image_size": 224, "patch": 14}
WITHOUT_IMAGES = {"image_encoder": None, "dropout": {}, "patch_statistics": "cls", "shuffle_patches": False}
OLD = {"trainer": {"max_steps": 3}, "teacher": {"teachers": {"a": DINO}}, "loss": {}}


def test_a_missing_key_gets_the_value_of_the_former_behaviour():
    new = upgrade(OLD)
    switched_off = {"ema_warmup": False, "skip_spikes": False, "sharding": None, "look_every": None}
    assert new["trainer"] == {"max_steps": 3, "look_share": 0.02} | switched_off
    assert new["stop_when"] == {"_target_": "urepa.training.stop_rules.never.Never"}
    assert new["teacher"]["teachers"]["a"]["positions"] == "transformers"
    assert "ema_warmup" not in OLD["trainer"], "the caller's config is left alone"


@pytest.mark.parametrize(
    ("changes", "positions"),
    [
        ({}, "transformers"),
        ({"image_size": 448}, "transformers"),
        ({"image_size": 518}, "meta"),
        ({"family": "dinov2_registers"}, None),
        ({"family": "clip", "image_size": 448}, None),
    ],
)
def test_an_old_teachers_rule_of_positions_is_that_of_its_size(changes, positions):
    """At 518 px nothing is resampled, so old and new runs are comparable."""
    new = upgrade({"teacher": DINO | changes})["teacher"]
    assert new["positions"] == positions
    check_vit(new["family"], new["image_size"], new["patch"], [4, 4], new["positions"])
    flat = {f"teacher.{key}": str(value) for key, value in (DINO | changes).items()}
    assert upgrade_flat(flat, 0)["teacher.positions"] == str(positions)


def test_a_small_track_of_an_earlier_version_left_no_image_out():
    track = {"_target_": "urepa.data.pixels.PixelTrack", "limit": 3}
    assert upgrade({"data": track})["data"]["max_skipped"] == 0.0
    flat = {f"data.{key}": str(value) for key, value in track.items()}
    assert upgrade_flat(flat, 0)["data.max_skipped"] == "0.0"


def test_configs_of_this_version_are_unchanged():
    config = {"trainer": {"max_steps": 3}, "teacher": {"_target_": VIT}}
    assert add_schema_number(config)[KEY] == SCHEMA
    assert upgrade(add_schema_number(config)) == config


def test_mlflows_parameters_and_a_folders_config_are_upgraded_alike():
    flat = {key: str(value) for key, value in flatten(OLD).items()}
    assert upgrade_flat(flat, 0) == {key: str(value) for key, value in flatten(upgrade(OLD)).items()}
    assert upgrade_flat({"a": "1", "a.b": "2"}, 0) == {"a": "1", "a.b": "2"}, "another program's parameters"


@pytest.mark.parametrize("number", [SCHEMA + 1, -1, "x", 1.5])
def test_another_form_is_refused(number):
    with pytest.raises(UserError, match="later one"):
        upgrade({KEY: number})


EFFICIENTNET = "urepa.teachers.efficientnet.EfficientNetLite0"


def test_an_efficientnet_of_an_earlier_version_used_its_last_map():
    teacher = {"_target_": EFFICIENTNET, "image_size": 128, "grid": [4, 4]}
    encoders = {"encoders": {"own": teacher}}
    old = {"teacher": teacher, "evaluation": {"generation": encoders}}
    new = upgrade({KEY: 1} | old)
    assert new["teacher"]["stride"] == new["evaluation"]["generation"]["encoders"]["own"]["stride"] == 32
    flat = {key: str(value) for key, value in flatten(old).items()}
    assert upgrade_flat(flat, 1)["teacher.stride"] == "32"
    assert upgrade({KEY: 1, "teacher": teacher | {"stride": 8}})["teacher"]["stride"] == 8


@pytest.mark.parametrize(
    ("before", "since"),
    [
        ("DDPMEpsilon", "urepa.method.objectives.ddpm_epsilon.DDPMEpsilon"),
        ("DDPMVelocity", "urepa.method.objectives.ddpm_velocity.DDPMVelocity"),
        ("Flow", "urepa.method.objectives.flow.Flow"),
    ],
)
def test_objectives_of_earlier_versions_become_declared_parts(before: str, since: str) -> None:
    for number, module in ((2, "urepa.objectives"), (3, "urepa.method.objectives")):
        stored = {KEY: number, "objective": {"_target_": f"{module}.{before}", "path": "linear"}}
        added = {"min_snr": None} if "DDPM" in before else {}
        assert upgrade(stored) == {"objective": {"_target_": since, "path": "linear"} | added}
        flat = upgrade_flat({"objective._target_": f"{module}.{before}"}, number)
        assert flat == {"objective._target_": since} | {f"objective.{key}": str(value) for key, value in added.items()}
    assert since in SCHEMAS


@pytest.mark.parametrize(
    ("before", "since"),
    [
        ("AlignmentLoss", "urepa.method.losses.urepa_loss.URepaLoss"),
        ("DiffusionOnly", "urepa.method.losses.no_loss.NoLoss"),
    ],
)
def test_losses_of_earlier_versions_become_declared_parts_with_a_constant_lambda(before: str, since: str) -> None:
    constant = {"_target_": "urepa.method.schedules.constant.Constant", "stop_step": None}
    for number, module in ((2, "urepa.alignment"), (4, "urepa.method.training_step")):
        loss = {"_target_": f"{module}.{before}", "lambda_max": 0.5}
        added = {"grid": "teacher", "manifold_diagonal": False} if before == "AlignmentLoss" else {}
        assert upgrade({KEY: number, "loss": loss}) == {
            "loss": loss | {"_target_": since} | added,
            "schedule": constant,
        }
        found = upgrade_flat({"loss._target_": f"{module}.{before}"}, number)
        flat = {f"schedule.{key}": str(value) for key, value in constant.items()}
        assert found == {"loss._target_": since} | flat | {f"loss.{key}": str(value) for key, value in added.items()}
    assert {since, constant["_target_"]} <= SCHEMAS.keys()
    cosine = {"_target_": "urepa.method.schedules.cosine.Cosine", "final": 0.1}
    added = {"stop_step": None, "decay_steps": None}
    assert upgrade({KEY: 4, "loss": loss, "schedule": cosine})["schedule"] == cosine | added


@pytest.mark.parametrize("number", ["0", "2"])
def test_efficientnets_of_earlier_versions_become_declared_parts_also_as_members_and_encoders(number: str) -> None:
    name = f"EfficientNetLite{number}"
    since = f"urepa.models.teachers.efficientnet_lite{number}.{name}"
    for form, module in ((2, "urepa.teachers.efficientnet"), (3, "urepa.models.teachers.efficientnet")):
        one = {"_target_": f"{module}.{name}"}
        held = {"teacher": {"teachers": {"a": one}}, "evaluation": {"x": {"encoders": {"b": one}}}}
        found = upgrade({KEY: form} | held)
        assert found["teacher"]["teachers"]["a"]["_target_"] == since
        assert found["evaluation"]["x"]["encoders"]["b"]["_target_"] == since
    assert since in SCHEMAS


@pytest.mark.parametrize(
    ("kind", "earliest", "before", "since"),
    [
        ("backbone", "urepa.backbones.sit", "sit", "urepa.models.backbones.sit.SiT"),
        ("backbone", "urepa.backbones.sd15", "sd15", "urepa.models.backbones.sd15.SD15"),
        ("backbone", "urepa.backbones.unet", "tiny_unet", "urepa.models.backbones.tiny_unet.TinyUNet"),
        ("lora", "urepa.lora", "add_lora", "urepa.models.lora.adapters.LoRA"),
        ("lora", "urepa.lora", "no_lora", "urepa.models.lora.no_lora.NoLoRA"),
    ],
)
def test_backbones_and_lora_of_earlier_versions_become_declared_parts(
    kind: str, earliest: str, before: str, since: str
) -> None:
    for number, module in ((2, earliest), (4, PLACES[earliest])):
        stored = {KEY: number, kind: {"_target_": f"{module}.{before}", "_partial_": True, "weights": "random"}}
        keys = {
            "add_lora": {"use_rslora": False, "use_dora": False},
            "sit": {"route": [], "route_share": 0.0, "class_token": 0},
        }
        added = keys.get(before, {})
        assert upgrade(stored) == {kind: {"_target_": since, "weights": "random"} | added}
        flat = upgrade_flat({f"{kind}._target_": f"{module}.{before}", f"{kind}._partial_": "True"}, number)
        assert flat[f"{kind}._target_"] == since
        assert f"{kind}._partial_" not in flat
    assert since in SCHEMAS


OF_EVALUATIONS = {
    "urepa.evaluation.generation.Generation": "urepa.evaluation.measures.generation.Generation",
    "urepa.evaluation.generated.GeneratedImages": "urepa.evaluation.images.generated_images.GeneratedImages",
    "urepa.evaluation.encoders.Pixels": "urepa.evaluation.encoders.pixels.Pixels",
    "urepa.evaluation.cifar_cnn.CifarCNN": "urepa.evaluation.encoders.cifar_cnn.CifarCNN",
    "urepa.evaluation.encoders.Inception": "urepa.evaluation.encoders.inception.Inception",
    "urepa.evaluation.alignment.Alignment": "urepa.evaluation.measures.teacher_alignment.TeacherAlignment",
    "urepa.evaluation.probe.LinearProbe": "urepa.evaluation.measures.linear_probe.LinearProbe",
}


@pytest.mark.parametrize(("before", "since"), OF_EVALUATIONS.items())
def test_evaluations_of_earlier_versions_become_declared_parts_with_their_members(before: str, since: str) -> None:
    for number in (0, 2):
        found = upgrade({KEY: number, "evaluation": {"x": {"encoders": {"a": {"_target_": before, "grid": 8}}}}})
        assert found == {"evaluation": {"x": {"encoders": {"a": {"_target_": since, "grid": 8}}}}}
    assert facts_of({"evaluation": {"x": {"_target_": before}}})["evaluation"]["x"]["_target_"] == since
    assert since in SCHEMAS


@pytest.mark.parametrize("step", STEPS)
def test_an_upgrade_step_leaves_the_present_form_unchanged(
    evaluated: dict[str, Any], step: Callable[..., None]
) -> None:
    """These facts have no schema number, so each step is applied to what this version wrote."""
    config = without(evaluated)
    step(config)
    assert config == evaluated


@pytest.mark.parametrize("before", sorted(DECLARED))
def test_all_renamed_parts_exist(before: str) -> None:
    """Also from the names that modules had before the package was divided into folders."""
    assert DECLARED[before] in SCHEMAS
    keys: dict[str, dict[str, Any]] = {  # that came later, with the value that means what was
        "PixelTrack": dict.fromkeys(("buckets", "captions", "text_encoder", "caption_column"))
        | {"online_text": False, "condition": "label"}
        | WITHOUT_IMAGES,
        "LatentTrack": dict.fromkeys(("buckets", "captions", "text_encoder", "caption_column", "tae"))
        | {"teacher_sees": "images", "online_text": False, "condition": "label"}
        | WITHOUT_IMAGES,
        "AlignmentLoss": {"grid": "teacher", "manifold_diagonal": False},
        "add_lora": {"use_rslora": False, "use_dora": False},
        "sit": {"route": [], "route_share": 0.0, "class_token": 0},
    }
    added = keys.get(before.rpartition(".")[2], {})
    assert upgrade({KEY: 4, "part": {"_target_": before, "_partial_": True}}) == {
        "part": {"_target_": DECLARED[before]} | added
    }
    earlier = {since: module for module, since in PLACES.items()}
    module, _, name = before.rpartition(".")
    if module in earlier:
        assert upgrade({"part": {"_target_": f"{earlier[module]}.{name}"}})["part"]["_target_"] == DECLARED[before]


@pytest.mark.parametrize("stop", [None, 50])
@pytest.mark.parametrize("shape", ["Constant", "Cosine"])
def test_the_stop_step_was_a_setting_of_the_loss(shape, stop):
    target = f"urepa.method.schedules.{shape.lower()}.{shape}"
    schedule = {"_target_": target} | ({"final": 0.1} if shape == "Cosine" else {})
    old = {"loss": {"lambda_max": 0.5, "stop_step": stop}, "schedule": schedule}
    decay = {"decay_steps": None} if shape == "Cosine" else {}
    assert upgrade({KEY: 5} | old) == {"loss": {"lambda_max": 0.5}, "schedule": schedule | {"stop_step": stop} | decay}
    flat = {key: str(value) for key, value in flatten(old).items()}
    assert upgrade_flat(flat, 5) == {key: str(value) for key, value in flatten(upgrade({KEY: 5} | old)).items()}
    own = {"_target_": "mine.Mine"}  # another package's has the key only where it means something
    expected = own if stop is None else own | {"stop_step": stop}
    assert upgrade({KEY: 5} | old | {"schedule": own})["schedule"] == expected
    before_schedules = upgrade({KEY: 4, "loss": {"stop_step": stop}})
    assert before_schedules["schedule"] == {"_target_": "urepa.method.schedules.constant.Constant", "stop_step": stop}


def test_alignment_was_on_the_teachers_grid_and_teachers_got_the_images() -> None:
    """Also for a run that MLflow stores as text; values that are set stay."""
    loss = {"_target_": "urepa.method.losses.urepa_loss.URepaLoss"}
    track = {"_target_": "urepa.data.tracks.latent_track.LatentTrack"}
    found = upgrade({KEY: 6, "loss": loss, "data": track | {"teacher_sees": "decoded"}})
    assert found["loss"] == loss | {"grid": "teacher", "manifold_diagonal": False}
    earlier = dict.fromkeys(("buckets", "captions", "text_encoder", "caption_column", "tae"))
    later = {"teacher_sees": "decoded", "online_text": False, "condition": "label"} | WITHOUT_IMAGES
    assert found["data"] == track | earlier | later
    flat = upgrade_flat({"data._target_": track["_target_"], "loss._target_": loss["_target_"]}, 6)
    assert (flat["data.teacher_sees"], flat["data.tae"]) == ("images", "None")
    assert (flat["loss.grid"], flat["loss.manifold_diagonal"]) == ("teacher", "False")
    assert upgrade({KEY: 7, "loss": loss | {"grid": [4, 8]}})["loss"] == loss | {"grid": [4, 8]}


@pytest.mark.parametrize("target", ["urepa.lora.add_lora", "urepa.models.lora.adapters.LoRA"])
def test_adapters_of_earlier_versions_were_plain_lora(target: str) -> None:
    """Except for those of a run that records something else."""
    lora = {"_target_": target, "rank": 8}
    new = upgrade({"lora": lora})["lora"]
    assert (new["use_rslora"], new["use_dora"]) == (False, False)
    flat = upgrade_flat({f"lora.{key}": str(value) for key, value in lora.items()}, 0)
    assert (flat["lora.use_rslora"], flat["lora.use_dora"]) == ("False", "False")
    now = {"_target_": "urepa.models.lora.adapters.LoRA", "use_rslora": True, "use_dora": True}
    assert upgrade(add_schema_number({"lora": now}))["lora"] == now
    assert upgrade({"lora": now})["lora"] == now
    assert "use_dora" not in upgrade({"lora": {"_target_": "urepa.models.lora.no_lora.NoLoRA"}})["lora"]


def test_a_clip_of_captions_had_masked_padding_and_zeros_for_no_caption():
    clip = {"_target_": "urepa.models.text_encoders.clip_text.CLIPText", "model": "clip", "width": 16, "length": 12}
    track = {"_target_": "urepa.data.tracks.pixel_track.PixelTrack", "text_encoder": clip}
    upgraded = upgrade({KEY: 6, "data": track})["data"]["text_encoder"]
    assert upgraded == clip | {"padding": "masked", "null_text": "zeros"}
    kept = {"padding": "attended", "null_text": "empty"}
    assert upgrade({KEY: 6, "data": {"text_encoder": clip | kept}})["data"]["text_encoder"] == clip | kept


def test_a_gemmas_captions_had_no_text_before_them() -> None:
    gemma = {"_target_": "urepa.models.text_encoders.gemma.Gemma", "model": "sana", "layer": -1}
    stored = {"schema": 7, "data": {"_target_": "urepa.data.tracks.latent_track.LatentTrack", "text_encoder": gemma}}
    assert upgrade(stored)["data"]["text_encoder"] == gemma | {"before": None}


def test_an_earlier_flextok_keeps_its_function() -> None:
    target = "urepa.models.backbones.flextok.FlexTok"
    earlier = {"mlp_ratio": 4.0, "norm_eps": 1e-6, "mask_positions": True}
    assert upgrade({KEY: 8, "backbone": {"_target_": target, "registers": 8}}) == {
        "backbone": {"_target_": target, "registers": 8} | earlier
    }
    present = {"_target_": target, "mlp_ratio": 2.6667, "norm_eps": 1e-5, "mask_positions": False}
    assert upgrade({KEY: 8, "backbone": present}) == {"backbone": present}


def test_a_warm_start_of_before_took_all_weights_of_a_run():
    lists = {"allow_missing": [], "allow_shape": [], "allow_unused": []}
    assert upgrade({"schema": 8, "warm_start": "outputs/a/seed0"})["warm_start"] == {
        "checkpoint": "outputs/a/seed0",
        **lists,
    }
    assert upgrade({"schema": 8, "warm_start": None})["warm_start"] == {"checkpoint": None, **lists}
    now = {"warm_start": {"checkpoint": "a", **lists, "allow_shape": ["x"]}}
    assert upgrade({"schema": SCHEMA} | now) == now


@pytest.mark.parametrize("source", ["None", "outputs/a/seed0"])
def test_a_warm_start_in_mlflow_may_be_stored_in_both_forms(source):
    """MLflow keeps parameters of before beside those that a resumed run adds."""
    now = {f"warm_start.{key}": "[]" for key in ("allow_missing", "allow_shape", "allow_unused")}
    now["warm_start.checkpoint"] = source
    assert upgrade_flat({"warm_start": source}, 8) == now
    assert upgrade_flat({"warm_start": source, **now}, SCHEMA) == now


def test_what_the_ninth_form_added_means_what_was_before(compose: Callable[..., dict[str, Any]]) -> None:
    """Stored configs without the keys are upgraded to the composed ones."""
    for overrides in (["objective=ddpm_v"], ["teacher=dinov2_l", "objective=ddpm_eps"], ["head=irepa", *ENCODERS]):
        composed = compose(*overrides)
        stored = without(composed, "unit_length", "cls_weight", "kernel", "min_snr", "skip_spikes", "sharding")
        assert stored != composed
        assert upgrade({KEY: 0} | stored) == composed


def test_what_the_tenth_form_added_means_what_was_before(compose: Callable[..., dict[str, Any]]) -> None:
    """Stored configs without the keys are upgraded to the composed ones."""
    for overrides in ([], ["teacher=dinov2_l"], ["+experiment=repa_cifar10"]):
        composed = compose(*overrides)
        stored = without(composed, "whiten", "block", "route", "route_share")
        assert stored != composed
        assert upgrade({KEY: 0} | stored) == composed


def test_what_the_eleventh_form_added_means_what_was_before(compose: Callable[..., dict[str, Any]]) -> None:
    """Stored configs without the keys are upgraded to the composed ones."""
    composed = compose("+experiment=repa_cifar10")
    stored = without(composed, "class_token")
    assert stored != composed
    assert upgrade({KEY: 0} | stored) == composed
