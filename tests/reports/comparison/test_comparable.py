"""Which values may be compared with the baseline's, and which seeds are pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from made_up import changed

from urepa.core.evaluation_protocols import PIXELS, RANDOM, TEACHER, UNTRAINED, Metric
from urepa.reports.comparison.comparable import differing_keys, incomparable_keys, noise_schedule_keys, unpairing_keys
from urepa.reports.comparison.evaluation_protocol import differences, protocol
from urepa.reports.comparison.metric_columns import (
    is_reference,
    metric_of,
    metrics_of,
    reference_key,
    reference_label,
    rests_on,
)
from urepa.reports.comparison.read_runs import as_text

TERMS = ("total", "diffusion", "token", "manifold", "x0_error")
EPSILON = "urepa.method.objectives.ddpm_epsilon.DDPMEpsilon"


@pytest.mark.parametrize(
    ("changes", "comparable"),
    [
        ({"loss.lambda_max": 0.8}, "diffusion token manifold x0_error"),
        ({"loss.manifold_weight": 0.0}, "diffusion token manifold x0_error"),
        ({"objective._target_": EPSILON}, "token manifold x0_error"),
        ({"objective.beta_schedule": "scaled_linear"}, "token manifold x0_error"),
        ({"teacher._target_": "urepa.models.teachers.efficientnet_lite2.EfficientNetLite2"}, "diffusion x0_error"),
        ({"teacher.grid": [2, 2]}, "diffusion x0_error"),
        ({"teacher.image_size": 64}, "diffusion x0_error"),
        ({"teacher": {"_target_": "urepa.models.teachers.vit.ViT", "positions": "timm"}}, "diffusion x0_error"),
        ({"loss.taps": {"mid": 1.0, "enc_last": 1.0}}, "diffusion x0_error"),
        ({"loss.level": "token"}, "diffusion token x0_error"),
        ({"loss": {"_target_": "urepa.method.losses.no_loss.NoLoss"}}, "diffusion x0_error"),
        ({"head.depth": 1}, "total diffusion token manifold x0_error"),
        ({"loss.warmup_steps": 0, "data.limit": 4000}, "total diffusion token manifold x0_error"),
        ({"data.root": "elsewhere"}, "total diffusion token manifold x0_error"),
        ({"data.cfg_dropout": 0.5}, "total diffusion token manifold x0_error"),
        ({"data.cfg_dropout": 1.0}, ""),
    ],
)
def test_only_equal_quantities_are_compared(config: dict[str, Any], changes: dict[str, Any], comparable: str) -> None:
    arm, baseline = as_text(changed(config, changes)), as_text(config)
    assert [t for t in TERMS if not incomparable_keys(f"val/{t}", arm, baseline)] == comparable.split()
    by_bin = [t for t in TERMS if not incomparable_keys(f"val/{t}_by_t/0.0-0.1", arm, baseline)]
    assert by_bin == comparable.split()
    assert incomparable_keys("final/tap_knn", arm, baseline) == []


def test_terms_rest_on_what_they_are_compared_with(config: dict[str, Any]) -> None:
    """The attention loss on the teacher, the distance to latents on what the backbone predicts."""
    baseline = as_text(config)
    teacher, objective = ({"teacher.image_size": 64}, {"objective._target_": EPSILON})
    for key, changes in (("attention", teacher), ("latents", objective)):
        assert incomparable_keys(f"val/{key}", as_text(changed(config, changes)), baseline) == list(changes)
    assert incomparable_keys("val/attention", as_text(changed(config, objective)), baseline) == []
    assert incomparable_keys("val/latents", as_text(changed(config, teacher)), baseline) == []


@pytest.mark.parametrize(
    ("changes", "fit", "tap"),
    [
        ({"teacher.grid": [2, 2]}, ["teacher.grid"], ["teacher.grid"]),
        ({"teacher.image_size": 64}, ["teacher.image_size"], ["teacher.image_size"]),
        ({"loss.spatial_norm": 0.6}, ["loss.spatial_norm"], []),
        ({"loss.taps": {"mid": 1.0, "enc_last": 1.0}, "loss.lambda_max": 0.8}, [], []),
    ],
)
def test_measurements_against_the_teacher_depend_on_it(
    config: dict[str, Any], changes: dict[str, Any], fit: list[str], tap: list[str]
) -> None:
    """As val/token does, but at any tap; the results of a reader on the tap's own vectors do not depend on the
    teacher."""
    arm, baseline = as_text(changed(config, changes)), as_text(config)
    for name in ("token_cosine", "token_cosine_above_constant", "similarity_mae", "neighbour_recall"):
        for ending in ("", "/enc_last", "/enc_last/dino"):
            assert incomparable_keys(f"final/{name}{ending}", arm, baseline) == fit
            assert differing_keys(arm, baseline, rests_on(f"final/{name}{ending}")) == fit, "as it is declared"
    for name in ("cka", "cknna", "cka/enc_last", "cknna/dino"):
        assert incomparable_keys(f"final/{name}", arm, baseline) == tap
        assert differing_keys(arm, baseline, rests_on(f"final/{name}")) == tap
    for name in ("tap_knn", "knn/tap", "knn/head", "linear_probe/tap_attention", "dense/tap", "fd/pixels"):
        assert incomparable_keys(f"final/{name}", arm, baseline) == []
        assert rests_on(f"final/{name}") == ()


@pytest.mark.parametrize(
    ("changes", "comparable", "unpaired"),
    [
        ({"loss.lambda_max": 0.0}, "diffusion token manifold x0_error", []),
        ({"schedule.stop_step": 100}, "diffusion token manifold x0_error", []),
        ({"loss.spatial_norm": 0.6}, "diffusion x0_error", []),
        ({"loss.taps": {"block_2": 1.0}}, "diffusion x0_error", []),
        ({"head": {"_target_": "urepa.method.heads.spatial.Spatial"}}, "total diffusion token manifold x0_error", []),
        ({"objective.draw": "lognormal"}, "", ["objective.draw"]),
        ({"objective.path": "cosine"}, "token manifold x0_error", []),
        ({"backbone.qk_norm": True}, "total diffusion token manifold x0_error", []),
    ],
)
def test_comparisons_of_the_arms_of_a_sit(
    compose: Callable[..., dict[str, Any]], changes: dict[str, Any], comparable: str, unpaired: list[str]
) -> None:
    config = compose("+experiment=repa_cifar10_pixels")
    arm, baseline = as_text(changed(config, changes)), as_text(config)
    assert [t for t in TERMS if not incomparable_keys(f"val/{t}", arm, baseline)] == comparable.split()
    by_bin = [t for t in TERMS if not incomparable_keys(f"val/{t}_by_t/0.0-0.1", arm, baseline)]
    assert by_bin == (["token", "manifold", "x0_error"] if unpaired else comparable.split())
    assert unpairing_keys(arm, baseline) == unpaired
    assert not differences(protocol(arm, {}), protocol(baseline, {}))


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({"data.limit": 4000}, ["data.limit"]),
        ({"trainer.max_steps": 50}, ["trainer.max_steps"]),
        ({"trainer.batch_size": 64}, ["trainer.batch_size"]),
        ({"data.cfg_dropout": 0.2}, []),
        ({"data.flip": True}, ["data.flip"]),
        ({"objective._target_": EPSILON, "head.depth": 3, "loss.lambda_max": 0.0}, []),
    ],
)
def test_only_data_and_steps_unpair_seeds(config: dict[str, Any], changes: dict[str, Any], keys: list[str]) -> None:
    assert unpairing_keys(as_text(changed(config, changes)), as_text(config)) == keys


def test_a_training_total_is_at_each_steps_own_lambda(config: dict[str, Any]) -> None:
    arm, baseline = as_text(changed(config, {"loss.warmup_steps": 0})), as_text(config)
    assert incomparable_keys("train/total", arm, baseline) == ["loss.warmup_steps"]
    assert incomparable_keys("val/total", arm, baseline) == incomparable_keys("train/token", arm, baseline) == []


def test_another_beta_is_another_noise_level(config: dict[str, Any]) -> None:
    scaled = as_text(changed(config, {"objective.beta_schedule": "scaled_linear"}))
    assert noise_schedule_keys(scaled, as_text(config)) == ["objective.beta_schedule"]
    assert noise_schedule_keys(as_text(changed(config, {"objective._target_": EPSILON})), as_text(config)) == []


@pytest.mark.parametrize(
    ("changes", "validation_set", "same"),
    [
        ({"data.limit": 4000, "data.cfg_dropout": 0.0, "data.name": "half"}, "v", True),
        ({"data.flip": True}, "v", True),
        ({"data.validation_images": 10}, "v", False),
        ({"data.unshuffle": 4}, "v", False),
        ({"evaluation": {}}, "v", False),
        ({"evaluation.probe.knn": 5}, "v", False),
        ({"trainer.validation_group": 20}, "v", False),
        ({}, "w", False),
        ({"data.name": "half"}, None, False),  # an older run, that did not record its validation images
    ],
)
def test_metrics_of_other_protocols_are_not_compared(
    config: dict[str, Any], changes: dict[str, Any], validation_set: str | None, same: bool
) -> None:
    facts = [{} if v is None else {"validation_set": v} for v in (validation_set, validation_set and "v")]
    found = protocol(as_text(changed(config, changes)), facts[0])
    assert (found == protocol(as_text(config), facts[1])) is same


@pytest.mark.fast(3)
@pytest.mark.parametrize(
    ("arm", "changes", "differing"),
    [
        (["+ablation=sit_tap_depth_4"], {}, []),
        (["objective=ddpm_v"], {}, []),
        (["loss=none", "evaluation.knn.tap=block_7", "evaluation.alignment.tap=block_7"], {}, []),
        ([], {"evaluation.knn.tap": "block_2"}, ["evaluation.knn.tap"]),
        (["+ablation=sit_tap_depth_4"], {"evaluation.knn.tap": "block_2"}, ["evaluation.knn.tap"]),
        (["objective=ddpm_v"], {"evaluation.knn.timestep": 501}, ["evaluation.knn.timestep"]),
        ([], {"evaluation.knn.timestep": 0.4}, ["evaluation.knn.timestep"]),
        ([], {"evaluation.alignment.timesteps": [0.5]}, ["evaluation.alignment.timesteps"]),
        ([], {"evaluation.knn.k": 5}, ["evaluation.knn.k"]),
    ],
)
def test_the_aligned_tap_and_a_share_of_the_time_are_one_setting_in_every_run(
    compose: Callable[..., dict[str, Any]], arm: list[str], changes: dict[str, Any], differing: list[str]
) -> None:
    """`tap: ${aligned_tap:}` is block_3 or block_7, and `timestep: ${time_at:0.5}` is 500 or 0.5, by the run's own
    config."""
    given = ("+experiment=repa_imagenet256", "evaluation=[alignment,knn]")
    here, there = changed(compose(*given, *arm), changes), compose(*given)
    found = differences(protocol(as_text(here), {}), protocol(as_text(there), {}))
    assert [key for key, _, _ in found] == differing


def test_a_later_evaluation_counts(config: dict[str, Any]) -> None:
    """A run trained without the evaluation and evaluated later is compared with runs that had it from the start."""
    late = as_text(changed(config, {"evaluation": {}}))
    facts = {"evaluation": config["evaluation"]}
    assert protocol(late, facts) == protocol(as_text(config), facts) == protocol(as_text(config), {})
    assert protocol(late, {"evaluation": {}}) == protocol(late, {}) != protocol(late, facts)


def test_unknown_evaluations_get_a_column_and_references_do_not() -> None:
    keys = {"final/fd_inception", "final/teacher_knn", "floor/zero_predictor", "val/token", "val/total", "train/total"}
    assert [m.key for m in metrics_of(keys)] == ["val/total", "val/token", "final/fd_inception"]
    assert [m.label for m in metrics_of(keys)][-1] == "fd inception"


def test_columns_of_an_encoder_have_its_name_and_circular_ones_are_marked() -> None:
    keys = {f"final/{kind}/{name}" for kind in ("fd", "kid", "kid_sd", "precision", "recall") for name in ("own", "px")}
    keys |= {"floor/fd/px", "final/circular/own", "final/clip_score", "final/inception_score_sd", "final/unknown_thing"}
    assert [metric.title for metric in metrics_of(keys)] == [
        "CLIP score\u00a0↑",
        "FD(own, circular)\u00a0↓",
        "KID(own, circular)\u00a0↓",
        "precision(own, circular)\u00a0↑",
        "recall(own, circular)\u00a0↑",
        "FD(px)\u00a0↓",
        "KID(px)\u00a0↓",
        "precision(px)\u00a0↑",
        "recall(px)\u00a0↑",
        "unknown thing",
    ]
    assert reference_label("floor/fd/px") == "FD(px) of held-out images"
    errors = {"final/fd_se/px": "one run's images", "floor/fd_se/px": "held-out images"}
    assert all(map(is_reference, errors)), "a distance's error is no column"
    assert metrics_of(keys | errors.keys()) == metrics_of(keys)
    for key, whose in errors.items():
        assert reference_label(key) == f"standard error of FD(px) over resamplings of {whose}"
    assert reference_label("final/pixel_knn") == "k-NN on pixels"


def test_readings_have_an_order_and_names() -> None:
    keys = {"final/cknna", "final/cka/enc_last", "final/cka", "final/linear_probe/head_attention_top5", "final/knn/tap"}
    beside = {"final/knn/teacher", "final/untrained_cka", "final/knn/untrained_tap", "final/cka_by_t/mid/0500"}
    assert [m.title for m in metrics_of(keys | beside)] == [
        "k-NN: tap\u00a0↑",
        "linear probe: head, attention, top 5\u00a0↑",
        "CKA of the tap\u00a0↑",
        "CKNNA of the tap\u00a0↑",
        "CKA of the tap (enc_last)\u00a0↑",
    ]


@pytest.mark.parametrize(
    ("key", "row", "reference"),
    [
        ("final/tap_knn", TEACHER, "final/teacher_knn"),
        ("final/tap_knn", PIXELS, "final/pixel_knn"),
        ("final/knn/head_attention_top5", TEACHER, "final/knn/teacher_attention_top5"),
        ("final/knn/head_attention_top5", UNTRAINED, "final/knn/untrained_head_attention_top5"),
        ("final/cka", UNTRAINED, "final/untrained_cka"),
        ("final/cka", RANDOM, "final/random_cka"),
        ("final/knn/tap", RANDOM, "final/knn/random_tap"),
        ("final/cka", TEACHER, ""),
        ("val/token", TEACHER, ""),
    ],
)
def test_the_reference_of_a_metric_is_read_in_the_same_way(key: str, row: str, reference: str) -> None:
    assert reference_key(metric_of(key) or Metric(key, key), row) == reference
    assert not reference or is_reference(reference)


def test_measures_of_tokens_have_their_teacher_and_untrained_model_beside_them() -> None:
    keys = {f"final/{m}/{what}" for m in ("dense", "lds") for what in ("tap", "head", "teacher", "untrained_tap")}
    titles = ["mIoU: tap\u00a0↑", "mIoU: head\u00a0↑", "LDS: tap", "LDS: head"]
    assert [metric.title for metric in metrics_of(keys)] == titles
    assert {k for k in keys if is_reference(k)} == {f"final/{m}/{w}" for m in ("dense", "lds") for w in BESIDE}
    (lds,) = metrics_of({"final/lds/tap"})
    assert [reference_key(lds, row) for row in (TEACHER, UNTRAINED)] == [f"final/lds/{what}" for what in BESIDE]


BESIDE = ("teacher", "untrained_tap")


# --- weights that an encoder is read from ---------------------------------------------------------------------


def measured_with(config: dict[str, Any], path: str, digest: str | None) -> dict[str, Any]:
    """The protocol of a run that was measured in the features of these weights."""
    file = {} if digest is None else {"weights_file": {"sha256": digest, "accuracy": "0.7"}}
    encoder = {"_target_": "urepa.evaluation.encoders.cifar_cnn.CifarCNN", "weights": path} | file
    evaluation = {"generation": {"encoders": {"cifar_cnn": encoder}}}
    return protocol(as_text(config), {"evaluation": evaluation})


@pytest.mark.parametrize(
    ("here", "there", "differ"),
    [
        (("a/cnn", "1" * 64), ("b/cnn", "1" * 64), False),  # the same at another place
        (("a/cnn", "1" * 64), ("a/cnn", "2" * 64), True),  # others at the same place
        (("a/cnn", None), ("a/cnn", "2" * 64), False),  # an earlier version's, which did not say
        (("a/cnn", None), ("b/cnn", "2" * 64), True),
    ],
)
def test_weights_are_identified_by_content_and_not_by_path(
    config: dict[str, Any], here: tuple[str, str | None], there: tuple[str, str | None], differ: bool
) -> None:
    found = differences(measured_with(config, *here), measured_with(config, *there))
    key = "evaluation.generation.encoders.cifar_cnn.weights"
    assert [name for name, _, _ in found] == [key] * differ
