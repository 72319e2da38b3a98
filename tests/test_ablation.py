"""Every arm changes what its header names, on every experiment that it fits; with others it is refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.errors import HydraException

from urepa.cli import CONF
from urepa.config import conf_options
from urepa.core.errors import UserError
from urepa.core.nested_dicts import flatten
from urepa.training.checks.combinations import check, vanished, without_arm

pytestmark = pytest.mark.long

Compose = Callable[..., dict[str, Any]]
ARMS = {p.stem: p.read_text() for p in sorted((Path(CONF) / "ablation").glob("*.yaml"))}
GONE = "gone"
FAMILIES = {
    "cifar10": "tiny_unet",
    "captions": "tiny_unet",
    "track": "sd15",
    "repa_sd3": "sd3",
    "repa_flux": "flux",
    "repa_sana": "sana",
    "repa_pixart": "pixart",
    "repa_chroma": "chroma",
    "repa_auraflow": "auraflow",
    "repa_flux2": "flux2",
    "repa_lumina2": "lumina2",
    "repa_hidream": "hidream",
    "family": "sd3",
    "repa": "sit",
    "urepa_sd15": "sd15",
    "urepa_sdxl": "sdxl",
    "urepa_kolors": "kolors",
    "finetune": "sd15",
    "flextok": "flextok",
    "nanodit": "nanodit",
}  # by the first word of the experiment, or two
EXPERIMENTS = {"": "tiny_unet"} | {
    p.stem: next(family for words, family in FAMILIES.items() if f"{p.stem}_".startswith(f"{words}_"))
    for p in (Path(CONF) / "experiment").glob("*.yaml")
}
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
BESIDE = {name: ["data.images=DIR", "data.num_classes=2"] for name in CAPTIONED}  # of a folder that is not here
BESIDE["nanodit_warm"] = [*BESIDE["nanodit_warm"], "warm_start.checkpoint=RUN"]
BESIDE["captions_cifar10"] = BESIDE["finetune_cifar10"] = ["data.images=DIR"]
BESIDE["flextok_celebahq"] = ["backbone.weights=FILE"]  # whose rates are those of fine-tuning
# the backbone is the arm's, and yet it would not be the arm's change there
OTHERWISE = {
    ("track_a_native", "eps_target"): "besides objective._target_ it would change objective.beta_schedule",
    ("track_a_native", "scaled_beta"): "besides objective.beta_schedule it would change objective._target_",
    ("track_a_native", "native"): "does not change objective._target_, objective.beta_schedule here",
    ("repa_cifar10_pixels", "sit_stop_50k"): "schedule.stop_step=50000 has no effect in a run of 2000 steps",
    ("repa_cifar10_pixels", "sit_tap_depth_4"): "does not change loss.taps.block_3, loss.taps.block_7 here",
    ("repa_smoke", "sit_stop_50k"): "schedule.stop_step=50000 has no effect in a run of 500 steps",
    ("repa_smoke", "sit_tap_depth_4"): "does not change loss.taps.block_3, loss.taps.block_7 here",
    ("track_b", "full_data"): "does not change data.name",
    ("track_b", "samples_100k"): "it would change backbone.prompts, data.root",
    ("track_b", "teacher_224"): "it would change backbone.prompts, data.root, data.train",
}
OTHERWISE |= {
    (experiment, arm): words
    for experiment in ("repa_cifar10_cpu", "repa_fashion_cpu")
    for arm, words in {
        "sit_irepa": "does not change loss.spatial_norm here",
        "sit_spatial_norm": "does not change loss.spatial_norm here",
        "sit_stop_50k": "schedule.stop_step=50000 has no effect in a run of 1000 steps",
        "sit_tap_depth_4": "besides loss.taps.block_3, loss.taps.block_7 it would change",
    }.items()
}
OTHERWISE |= {
    ("family_smoke", arm): words
    for arm, words in {
        "equal_decay": "besides optimizer.weight_decay.lora it would change optimizer.final_ratio",
        "repa_block_4": "besides loss.taps.block_4, loss.taps.block_8 it would change loss.taps.block_1",
        "repa_block_12": "besides loss.taps.block_12, loss.taps.block_8 it would change loss.taps.block_1",
        "repa_lora_16": "besides lora.rank it would change lora._target_",
        "repa_lora_64": "besides lora.rank it would change lora._target_",
        "repa_stop_5k": "schedule.stop_step=5000 has no effect in a run of 300 steps",
        "urepa_teacher_images": "",
        **{f"urepa_teacher_{size}_224": "" for size in "sblg"},
    }.items()
}
OTHERWISE |= {  # their encoder is DINOv3
    (
        "nanodit_smoke",
        arm,
    ): "it would change data.image_encoder.block, data.image_encoder.cls_weight, data.image_encoder.family"
    for arm in ("nanodit_multiples_of_14", "nanodit_registers")
}
OTHERWISE |= {
    ("nanodit_smoke", "nanodit_patch_statistics"): "does not change data.patch_statistics here",
    ("flextok_imagenet", "flextok_teacher_224"): "does not change teacher.grid, teacher.image_size here",
    ("flextok_smoke", "flextok_teacher_224"): "",
}
TEACHERS = tuple(f"urepa_teacher_{size}_224" for size in "sblg")
OF_TRACKS = dict.fromkeys(TEACHERS[:3], "does not change teacher.grid") | {
    TEACHERS[3]: "it would change teacher.model, teacher.width",
    "urepa_no_diagonal": "does not change loss.manifold_diagonal here",
    "urepa_teacher_images": "does not change data.teacher_sees here",
}
OTHERWISE |= {
    (track, arm): words for track in ("track_a", "track_a_native", "track_b") for arm, words in OF_TRACKS.items()
}
OTHERWISE |= {
    ("urepa_sd15_captions", arm): words
    for arm, words in {
        "eps_target": "besides objective._target_ it would change objective.beta_schedule",
        "full_data": "it would change",
        "head_single_layer": "",
        "manifold_token": "does not change loss.level here",
        "native": "does not change objective._target_, objective.beta_schedule here",
        "no_warmup": "does not change loss.warmup_steps here",
        "samples_100k": "it would change",
        "scaled_beta": "besides objective.beta_schedule it would change objective._target_",
        "skip_spikes": "trainer.skip_spikes=true has no effect without a threshold",
        "teacher_224": "it would change",
        "teacher_clip": "it would change teacher.grid, teacher.width",
        "teacher_mae": "it would change teacher.grid, teacher.width",
        "upsample_before": "",
    }.items()
}
OTHERWISE |= {  # on small images, with adapters on all attention layers
    ("finetune_cifar10", arm): words
    for arm, words in {
        "equal_decay": "besides optimizer.weight_decay.lora it would change optimizer.lr.head, optimizer.lr.lora",
        "full_data": "it would change",
        **{f"lora_{rank}": "besides lora.rank it would change lora.blocks" for rank in (16, 32, 64)},
        "lora_conv": "besides lora.targets it would change lora.blocks",
        "manifold_token": "does not change loss.level here",
        "no_warmup": "does not change loss.warmup_steps here",
        "samples_100k": "it would change",
        "skip_spikes": "trainer.skip_spikes=true has no effect without a threshold",
        "taps_three_lora_all": "does not change lora.blocks here",
        "teacher_224": "it would change",
        **dict.fromkeys(("head_single_layer", "upsample_before", "teacher_block_17", "teacher_cls_20"), ""),
        **dict.fromkeys(("teacher_clip", "teacher_mae", "urepa_tae_sd", "urepa_teacher_images"), ""),
        **{f"urepa_teacher_{size}_224": "" for size in "sblg"},
    }.items()
}
WITHOUT_TEACHER = (
    "method_dispersive",
    "method_latent_structure",
    "method_layer_sync",
    "method_self_representation",
)
OTHERWISE |= {
    (experiment, arm): "does not change loss.warmup_steps here"  # these have no warm-up, nor has the arm
    for experiment in ("repa_cifar10", "repa_cifar10_pixels", "repa_imagenet256", "repa_smoke")
    for arm in WITHOUT_TEACHER
}
OTHERWISE |= {  # whose tap lies within the route
    (experiment, "method_token_routing"): "some tokens skip block_3 in training"
    for experiment in ("repa_cifar10_pixels", "repa_smoke")
}
# the description's tables, and what a reviewer would ask
ROWS = [
    "baseline", "head_single_layer", "taps_three", "lora_16", "lora_32", "lora_conv",
    "no_warmup", "warmup_6000", "lambda_08", "no_manifold", "equal_decay",
    "samples_100k", "full_data", "no_cfg_dropout", "cfg_dropout_20",
    "lambda_0", "eps_target", "scaled_beta", "native", "manifold_token", "manifold_both", "upsample_before",
    "teacher_224", "taps_three_lora_all", "quarter_diffusion",
    "sit_irepa", "sit_irepa_head", "sit_spatial_norm", "sit_stop_50k", "sit_tap_depth_4",
    "sit_lambda_t", "sit_time_head", "sit_lambda_linear", "sit_similarity_cutoff",
    "lora_64", "manifold_1", "similarity_cutoff", "grid_student", "urepa_no_diagonal", "urepa_teacher_images",
    "urepa_tae_sd", "urepa_tae_sdxl", *TEACHERS,
    "repa_block_4", "repa_block_5", "repa_block_12", "repa_block_15", "repa_lora_16", "repa_lora_64",
    "repa_lambda_cosine", "repa_stop_5k",
    "manifold_clip_01", "clip_norm_05", "batch_64", "batch_96", "skip_spikes", "teacher_clip", "teacher_mae",
    "teacher_cls_20", "teacher_block_17",
    "flextok_tap_0", "flextok_lambda_05", "flextok_no_dropout", "flextok_powers_of_two", "flextok_wide_head",
    "flextok_teacher_224",
    "nanodit_cls_only", "nanodit_patch_positions", "nanodit_patches_shuffled", "nanodit_patch_statistics",
    "nanodit_cls_adaln", "nanodit_cls_context", "nanodit_cls_without_time", "nanodit_text_only_0",
    "nanodit_text_only_15", "nanodit_repa", "nanodit_multiples_of_14", "nanodit_registers",
    *WITHOUT_TEACHER, "method_gradient_conflict",
]  # fmt: skip
METHODS = [name for name in ARMS if name.startswith("method_")]
# the losses of these arms are for the tap and the schedule of repa_cifar10_cpu, and their objectives for its draw of t
ROWS += METHODS
OF_CPU = [
    name for name in METHODS if "loss._target_" in ARMS[name] or name in ("method_flow_data", "method_flow_contrastive")
]
OTHERWISE |= {
    (experiment, arm): ""
    for experiment in ("repa_cifar10", "repa_cifar10_pixels", "repa_imagenet256", "repa_smoke")
    for arm in OF_CPU
}
OTHERWISE |= {  # their teachers have other grids
    (experiment, "method_dinov2"): "it would change teacher.grid" for experiment in ("repa_cifar10", "repa_imagenet256")
}


def header(text: str) -> dict[str, str]:
    """`# Claim: ...` and so on; a line with more indentation continues the previous one."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        if named := re.match(r"# (\w+):(.*)", line):
            fields[named[1]] = named[2].strip()
        elif line.startswith("#   "):
            fields[list(fields)[-1]] += " " + line[1:].strip()
    return fields


def changes(arm: str) -> dict[str, Any]:
    """The changes that the header names, with values read as YAML; `~key` is removed."""
    pairs = (change.partition("=") for change in header(ARMS[arm])["Changes"].split())
    return {key.lstrip("~"): yaml.safe_load(value) if equals else GONE for key, equals, value in pairs}


def families(arm: str) -> list[str]:
    return header(ARMS[arm])["For"].split(", ")


def fits(experiment: str, arm: str) -> bool:
    return families(arm) == ["every backbone"] or EXPERIMENTS[experiment] in families(arm)


@pytest.fixture(scope="module")
def composed(compose: Compose) -> Compose:
    """compose(experiment, arm): the config and the command's overrides."""

    def both(experiment: str, arm: str | None = None, *more: str) -> tuple[dict[str, Any], list[str]]:
        overrides = [f"+experiment={experiment}"] if experiment else []
        overrides += [f"+ablation={arm}"] if arm else []
        overrides += BESIDE.get(experiment, [])
        return compose(*overrides, *more), [*overrides, *more]

    return both


def test_every_row_of_the_tables_is_an_arm() -> None:
    assert set(ROWS) <= set(ARMS)


def test_the_page_of_sweeps_says_how_many_arms_track_a_has() -> None:
    fitting = [arm for arm in ARMS if fits("track_a", arm) and ("track_a", arm) not in OTHERWISE]
    page = (Path(__file__).parents[1] / "docs" / "sweeps.md").read_text()
    assert f"the {len(fitting)} arms × 3 seeds of `track_a`" in page


# of each family one is enough in the fast part: an arm is composed, and is checked against the same command without it
on_every_experiment = pytest.mark.parametrize(
    "experiment",
    [
        pytest.param(
            e, id=e or "quickstart", marks=() if e in ("", "track_a", "repa_cifar10_pixels") else pytest.mark.slow
        )
        for e in EXPERIMENTS
    ],
)


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_says_claim_change_expectation_and_family(arm: str) -> None:
    fields = header(ARMS[arm])
    assert list(fields) == ["Claim", "Changes", "Expected", "For"]
    assert all(fields[name] for name in ("Claim", "Expected", "For"))
    own = yaml.safe_load(ARMS[arm]).get("arm")
    if arm == "baseline":
        assert (own, changes(arm), families(arm)) == (None, {}, ["every backbone"])
    else:
        assert own == {"families": families(arm), "changes": list(changes(arm))}


@pytest.mark.slow
@on_every_experiment
def test_an_arm_differs_from_its_baseline_in_what_its_header_names(composed: Compose, experiment: str) -> None:
    before, _ = composed(experiment)
    assert before.pop("arm") is None
    for arm in ARMS:
        if not fits(experiment, arm) or (experiment, arm) in OTHERWISE:
            continue
        after, overrides = composed(experiment, arm)
        check(after, overrides)
        after.pop("arm")
        there, here = flatten(before), flatten(after)
        implied = vanished(here, there, set(changes(arm))) - changes(arm).keys()
        keys = (there.keys() | here.keys()) - implied
        assert {k: here.get(k, GONE) for k in keys if there.get(k, GONE) != here.get(k, GONE)} == changes(arm), arm


@pytest.mark.slow
@on_every_experiment
def test_an_arm_for_another_family_is_refused_in_one_line(composed: Compose, experiment: str) -> None:
    """Of arms for other families each experiment has a sixth, in turn, so that each arm meets several of them."""
    turn = list(EXPERIMENTS).index(experiment)
    for number, arm in enumerate(ARMS):
        if (experiment, arm) not in OTHERWISE and (fits(experiment, arm) or (number + turn) % 6):
            continue
        family = EXPERIMENTS[experiment]
        meant = f"+ablation={arm} is for the backbone {' or '.join(families(arm))}, not for {family}"
        words = OTHERWISE.get((experiment, arm), meant)
        with pytest.raises((UserError, HydraException)) as refused:
            check(*composed(experiment, arm))
        if isinstance(refused.value, HydraException):  # the part has no such key; the door says so in one line
            pattern = rf"full_key: (\S+)\n|In 'ablation/{arm}': Could not override '(?:\S+@)?(\S+)'"
            named = re.search(pattern, str(refused.value))
            assert named is not None, f"{arm}: {refused.value}"
            place = named[1] or named[2]
            assert any(f"{key}.".startswith(f"{place}.") for key in changes(arm)), f"{arm}: {refused.value}"
            continue
        assert words in str(refused.value)
        assert "\n" not in str(refused.value)


@pytest.mark.slow
def test_an_arm_that_the_command_line_undoes_is_refused(composed: Compose) -> None:
    check(*composed("track_a", "lora_16", "lora.dropout=0.1"))
    check(*composed("track_a", "full_data", "data.root=DIR"))
    for override in ("lora.rank=8", "lora=mid_attention"):
        with pytest.raises(UserError, match=r"does not change lora\.rank here"):
            check(*composed("track_a", "lora_16", override))


@pytest.fixture
def own_arms(tmp_path: Path) -> Iterator[None]:
    """A folder beside conf/ with an arm that exchanges the head, and one without which there are no images."""
    arms = tmp_path / "ablation"
    arms.mkdir()
    said = "arm: {families: [sit], changes: [head._target_, head.hidden, head.depth, head.upsample]}"
    (arms / "conv.yaml").write_text(f"# @package _global_\ndefaults: [override /head: conv]\n{said}\n")
    said = "arm: {families: [tiny_unet], changes: [data.images]}"
    (arms / "images.yaml").write_text(f"# @package _global_\ndata: {{images: {tmp_path}, num_classes: 2}}\n{said}\n")
    conf_options.ADDED.append(tmp_path)
    yield
    conf_options.ADDED.remove(tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("own_arms")
def test_keys_of_an_exchanged_part_belong_to_the_arm(composed: Compose) -> None:
    """The replaced head has no depth. Keys that both commands can have are compared, and changes that the arm does not
    name are refused."""
    check(*composed("repa_cifar10", "conv", "loss.lambda_max=0.25", "head.depth=1", "head.upsample=before"))
    without = without_arm(["+experiment=repa_cifar10", "head.depth=1", "loss.lambda_max=0.25", "+ablation=conv"])
    assert without["head"]["hidden"] == 2048
    assert without["loss"]["lambda_max"] == 0.25
    check(*composed("track_a", "taps_three", "loss.taps.enc_last=0.5"))
    with pytest.raises(UserError, match=r"does not change lora\.rank here"):
        check(*composed("track_a", "lora_16", "lora.rank=8"))
    with pytest.raises(UserError, match=r"does not change loss\.taps\.dec_first, loss\.taps\.enc_last here"):
        check(*composed("track_a", "taps_three", "~loss.taps.dec_first", "~loss.taps.enc_last"))


@pytest.mark.usefixtures("own_arms")
def test_an_arm_without_which_there_is_no_command_is_refused_in_one_line(composed: Compose) -> None:
    said = "^this command without its .ablation, which an arm is compared with, fails: say where your images are.*$"
    with pytest.raises(UserError, match=said):
        check(*composed("", "images", "data=folder"))


@pytest.mark.slow
def test_a_time_conditioned_head_replaces_only_repas_head(composed: Compose) -> None:
    check(*composed("repa_cifar10", "sit_time_head", "head.hidden=64"))
    with pytest.raises(UserError, match="TimeMLP needs head.hidden, which this head does not set: choose another head"):
        check(*composed("repa_cifar10", "sit_time_head", "head=irepa"))


def test_a_command_with_its_own_parts_accepts_arms(compose: Compose) -> None:
    overrides = ["+experiment=track_a", "+ablation=lora_16"]
    check(compose(*overrides, "bench.steps=2", root="bench"), overrides)


def test_two_arms_at_once_are_refused(composed: Compose) -> None:
    with pytest.raises(UserError, match=r"besides loss\.warmup_steps it would change lora\.rank"):
        check(*composed("track_a", "[lora_16,no_warmup]"))


def test_an_arm_comes_from_the_command_line(composed: Compose) -> None:
    config, _ = composed("track_a", "lora_16")
    with pytest.raises(UserError, match=r"give \+ablation=NAME"):
        check(config, ["+experiment=of_my_own"])
