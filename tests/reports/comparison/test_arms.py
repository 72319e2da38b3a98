"""Grouping of runs by what was computed, runs that are set apart, the baseline, names and sweeps."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import pytest

from urepa.core.errors import UserError
from urepa.reports.comparison.arms import ComparedArms, sweeps
from urepa.reports.comparison.findings import other_remarks
from urepa.reports.comparison.results import Results

W = "w" * 16
Add, Group = Callable[..., None], Callable[..., ComparedArms]


def reasons(study: ComparedArms) -> dict[str, str]:
    return {apart.run.name: apart.reason for apart in study.apart}


def test_arms_are_configs_not_names(add: Add, study: Group) -> None:
    """Two names for one config are one arm; one name for two configs is two."""
    add(seeds=(0,), name="cifar10")
    add(seeds=(1,), name="cifar10,head.depth=2")  # the default, written out
    add(seeds=(0, 1), changes={"head.depth": 1}, name="cifar10,head.depth=1")
    add(seeds=(2,), changes={"head.depth": 1, "data.root": "elsewhere", "trainer.threads": 2}, name="copy")
    found = study()
    assert [(arm.label, list(arm.runs)) for arm in found.arms] == [("depth=1", [0, 1, 2]), ("depth=2", [0, 1])]
    assert not found.apart


def test_changes_are_read_from_configs(add: Add, study: Group) -> None:
    add()
    add("lambda_08", {"loss.lambda_max": 0.8})
    add("eps_target", {"objective._target_": "urepa.method.objectives.ddpm_epsilon.DDPMEpsilon"})
    add("none", {"loss": {"_target_": "urepa.method.losses.no_loss.NoLoss"}})
    found = {arm.label: [str(change) for change in arm.changes] for arm in study().arms}
    assert found == {
        "baseline": [],
        "eps_target": ["objective: DDPMVelocity → DDPMEpsilon"],
        "lambda_08": ["loss.lambda_max: 0.5 → 0.8"],
        "none": ["loss: URepaLoss → NoLoss"],
    }


def test_every_arm_has_a_unique_label(add: Add, results: Callable[..., Results], config: dict[str, Any]) -> None:
    """Two aligned arms with other taps and one without alignment: only changes that follow from an exchanged part are
    hidden. Each arm keeps its own numbers."""
    moved = config["loss"] | {"taps": {"enc_last": 1.0}}
    none = {"_target_": "urepa.method.losses.no_loss.NoLoss"}
    for loss, error in ((config["loss"], 0.5), (moved, 0.3), (none, 0.1)):
        way = {300: {"val/x0_error": error + 0.05}}
        last = {"val/x0_error": error}
        add(changes={"loss": loss}, name=str(error), values=lambda s, v=last: v, course=lambda s, w=way: w)
    found = results(baseline="loss.taps.mid=1.0")
    labels = [row.arm.label for row in found.rows]
    assert labels == [
        "loss=URepaLoss, enc_last=—, mid=1",
        "loss=NoLoss",
        "loss=URepaLoss, enc_last=1, mid=—",
    ]
    (course,) = [c for c in found.courses if c.metric.key == "val/x0_error"]
    ends = {label: pytest.approx(error) for label, error in zip(labels, (0.5, 0.1, 0.3), strict=True)}
    assert {label: cells[-1].mean for label, cells in course.cells.items()} == ends
    without, moved = ([str(change) for change in row.arm.changes] for row in found.rows[1:])
    assert moved == ["loss.taps.enc_last: — → 1", "loss.taps.mid: 1 → —"]
    assert without == ["loss: URepaLoss → NoLoss"]


def test_labels_that_would_be_the_same_are_numbered(add: Add, study: Group) -> None:
    """1 and 1.0, and two classes with one name, are printed alike."""
    for i, weight in enumerate((1, 1.0)):
        add(changes={"loss.manifold_weight": weight}, name=f"w{i}", seeds=(0,))
    assert [arm.label for arm in study().arms] == ["manifold_weight=1", "manifold_weight=1 (2)"]


def test_mirror_images_in_training_are_a_change_and_unpair_seeds(add: Add, results: Callable[..., Results]) -> None:
    add()
    add("flip", {"data.flip": True})
    row = results().rows[1]
    assert [str(change) for change in row.arm.changes] == ["data.flip: False → True"]
    assert row.notes[0].startswith("same seed, not paired: data.flip differs")
    assert row.differences["val/token"].how == "same seed, not paired"


@pytest.mark.slow
def test_order_is_the_documents_then_by_number(add: Add, study: Group) -> None:
    add("a", {"head.depth": 4})
    add("baseline")
    add("lora_16", {"head.depth": 3})
    for depth in (10, 9):
        add("y", {"head.depth": depth}, name=f"cifar10+y,head.depth={depth}")
    found = study(order=("head_single_layer", "lora_16", "baseline"))
    assert [arm.label for arm in found.arms] == ["baseline", "lora_16", "a", "y, depth=9", "y, depth=10"]


def stretches(*codes: tuple[int, str]) -> dict[str, Any]:
    """A summary's records of the code, by the first step of each version."""
    one = {"git_commit": "a" * 40, "code_state": "clean", "numerics": 1}
    code = [one | {"from_step": step, "code_digest": digest} for step, digest in codes]
    return code[-1] | {"code": code}


def test_a_run_of_several_versions_of_the_code_is_set_apart(add: Add, study: Group) -> None:
    add(seeds=(0, 1), summary=stretches((0, "one")))
    add(seeds=(2,), summary=stretches((0, "one"), (200, "two")))
    add(seeds=(3,), summary=stretches((0, "one"), (200, "one")) | {"git_commit": "b" * 40})
    add(seeds=(4,), summary=stretches((0, "two")))
    add(seeds=(5,), summary={"code": [{"from_step": 0}, *stretches((200, "one"))["code"]]})
    found = study()
    version = "aaaaaaaaa, training code"
    assert reasons(found) == {
        "cifar10+baseline/seed2": f"trained by several versions of the code: {version} one from step 0; {version} two "
        "from step 200",
        "cifar10+baseline/seed4": f"another version of the code: {version} two, not {version} one",
        "cifar10+baseline/seed5": f"trained by several versions of the code: unknown (unknown) from step 0; {version} "
        "one from step 200",
    }
    assert sorted(found.baseline.runs) == [0, 1, 3]


def test_unknown_code_is_not_the_same_as_unknown_code(add: Add, study: Group) -> None:
    add(seeds=(0, 1), summary={"git_commit": "unknown", "code_state": "unknown"})
    found = study()
    assert list(reasons(found).values()) == ["another version of the code: unknown (unknown), not unknown (unknown)"]


def test_two_machines_with_their_own_paths_to_the_same_data_are_one_arm(add: Add, study: Group) -> None:
    content = {"samples": "s", "latents": "l", "latents.held_out": "h"}
    data = {"latents": {"csv_sha256": {"train.csv": "t"}}, "tokens": None, "content": content}
    for seed, place in enumerate(("/data/cifar10", "/mnt/cifar-10")):
        changes = {"data.images": place, "data.root": f"{place}/caches"}
        add(seeds=(seed,), changes=changes, summary={"data": data, "overrides": [f"data.images={place[-8:]}"]})
    for seed, other in ((2, {"latents": "x"}), (3, {"latents": "x", "latents.held_out": "y"})):
        add(seeds=(seed,), summary={"data": data | {"content": content | other}})
    found = study()
    assert [sorted(arm.runs) for arm in found.arms] == [[0, 1], [2]]
    assert [change.key for change in found.arms[1].changes] == ["data.content.latents"], "other training images"
    assert list(reasons(found).values()) == [
        "another validation set or protocol: data.content.held_out_latents is y, not h"
    ]


def test_runs_from_other_weights_in_one_folder_are_two_arms(add: Add, study: Group) -> None:
    """The run at the given path went on between the first two seeds and the third."""
    for seed, digest in ((0, "a" * 64), (1, "a" * 64), (2, "b" * 64)):
        source = {"folder": "outputs/x/seed0", "step": 3, "sha256": digest}
        changes = {"warm_start.checkpoint": "outputs/x/seed0"}
        add(seeds=(seed,), changes=changes, summary={"warm_start": source, "data": {}})
    found = study()
    assert [sorted(arm.runs) for arm in found.arms] == [[0, 1], [2]]
    assert [str(change) for change in found.arms[1].changes] == [f"warm_start.content: {'a' * 10} → {'b' * 10}"]


def test_set_apart(add: Add, study: Group) -> None:
    add()
    add(seeds=(3,), finished=False)
    add(seeds=(4,), summary={"extended_from": 300})
    add(seeds=(5,), summary={"git_commit": "b" * 40})
    add(seeds=(6,), summary={"code_state": "changed 0123456789"})
    add(seeds=(7,), changes={"evaluation.probe.knn": 5})
    add(seeds=(8,), summary={"validation_set": W})
    add(seeds=(0,), name="again", start=1_700_000_000_000)
    add("slow", {"head.depth": 1}, seeds=(0, 1), name="cifar10+slow")
    add("buckets", {"data.buckets": [[32, 32], [24, 40]]}, seeds=(0,))
    found = study()
    assert reasons(found) == {
        "cifar10+buckets/seed0": "another validation set or protocol: data.buckets is [[32, 32], [24, 40]], not None",
        "cifar10+baseline/seed3": "unfinished: its last logged step is 300",
        "cifar10+baseline/seed4": "extended from 300 steps: its learning rate is not that of a run of this length",
        "cifar10+baseline/seed5": "another version of the code: bbbbbbbbb, not aaaaaaaaa",
        "cifar10+baseline/seed6": "another version of the code: aaaaaaaaa (changed 0123456789), not aaaaaaaaa",
        "cifar10+baseline/seed7": "another validation set or protocol: evaluation.probe.knn is 5, not 20",
        "cifar10+baseline/seed8": f"another validation set or protocol: validation images is {W}, not {'v' * 16}",
        "again/seed0": "an older run of the same arm and seed: the newest is used",
    }
    assert [list(arm.runs) for arm in found.arms] == [[0, 1, 2], [0, 1]]


def test_a_missing_evaluation_sets_no_run_apart(add: Add, study: Group, config: dict[str, Any]) -> None:
    """Two arms were evaluated again, in two ways; one arm was never evaluated."""
    own = config["evaluation"]
    ways = [own | {"knn": {"k": k}} for k in (20, 20, 5)]
    add(seeds=(0, 1, 2))
    for i, way in enumerate([{}, *ways]):
        add(f"arm{i}", {"head.depth": 3 + i}, seeds=(0,), summary={"evaluation": way})
    found = study()
    assert [arm.label for arm in found.arms] == ["baseline", "arm0", "arm1", "arm2"]
    assert reasons(found) == {"cifar10+arm3/seed0": "another validation set or protocol: evaluation.knn.k is 5, not 20"}


def test_without_a_majority_the_newest_run_decides(add: Add, study: Group) -> None:
    """Each of three runs differs from the two others in another part; the newest decides."""
    for i, (key, value) in enumerate(
        (("trainer.validation_group", 20), ("evaluation.samples.guidance", 2.0), ("evaluation.probe.knn", 5))
    ):
        add(f"arm{i}", {"head.depth": 3 + i, key: value}, seeds=(0,), start=1_800_000_000_000 + i)
    found = study()
    assert [arm.label for arm in found.arms] == ["arm2"]
    assert reasons(found)["cifar10+arm0/seed0"] == (
        "another validation set or protocol: trainer.validation_group is 20, not 60; evaluation.probe.knn is 20, not 5"
    )


def test_a_seed_that_was_evaluated_later_belongs_to_its_arm(add: Add, study: Group, config: dict[str, Any]) -> None:
    """Its config lacks the evaluation, its summary has it; the evaluation of another one is missing altogether."""
    add(seeds=(0, 1))
    add(changes={"evaluation": {}}, seeds=(2,), name="late", summary={"evaluation": config["evaluation"]})
    add(changes={"evaluation": {}}, seeds=(3,), name="none", summary={"evaluation": {}})
    (arm,) = study().arms
    assert (arm.label, list(arm.runs)) == ("baseline", [0, 1, 2, 3])


@pytest.mark.slow
def test_other_images_under_the_same_config_are_another_arm(add: Add, results: Callable[..., Results]) -> None:
    """data.images and data.root do not make another run, but their content does: the training data, the validation
    data, or the teacher's weights. The same data in another folder are the same arm."""

    def data(train: str = "a", val: str = "v", weights: str = "w") -> dict[str, Any]:
        teacher = {"weights_sha256": weights, "width": 8}
        latents = {"csv_sha256": {"train.csv": train, "val.csv": val, "test.csv": val}}
        return {"data": {"latents": latents, "tokens": {"teacher": teacher}, "flip": False}}

    add(seeds=(0, 1), summary=data())
    add(changes={"data.root": "elsewhere"}, seeds=(2,), name="moved", summary=data())
    add("half", {"data.limit": 4000}, summary=data("h"))
    found = results()
    assert [list(row.arm.runs) for row in found.rows] == [[0, 1, 2], [0, 1, 2]]
    assert [str(change) for change in found.rows[1].arm.changes] == ["data.limit: 8000 → 4000"]
    add(changes={"data.images": "other"}, seeds=(0, 1), name="other", summary=data("b"))
    add("deep", {"head.depth": 3, "data.images": "other"}, seeds=(0,), name="held", summary=data("b", "x"))
    add("teacher", {"head.depth": 4}, seeds=(0, 1), summary=data(weights="u"))
    a, b, v, x = (hashlib.sha256(text.encode()).hexdigest()[:10] for text in ("a", "b", "v\nv", "x\nx"))
    found = results(baseline=f"data.content.train={a},head.depth=2")
    by_label = {row.arm.label: row for row in found.rows}
    assert list(found.rows[0].arm.runs) == [0, 1, 2]
    other = by_label[f"train={b}"]
    assert [str(change) for change in other.arm.changes] == [f"data.content.train: {a} → {b}"]
    assert other.notes == ("same seed, not paired: data.content.train differs, so it saw other data or noise",)
    assert by_label["teacher"].cells["val/token"].why == "not comparable: another teacher.content"
    assert by_label["teacher"].differences["val/x0_error"].how == "paired"
    why = f"another validation set or protocol: data.content.held_out is {x}, not {v}"
    assert reasons(found.study) == {"held/seed0": why}


def test_the_baseline(add: Add, study: Group) -> None:
    for lam in (0.5, 0.0):
        for depth in (2, 1):
            add(changes={"loss.lambda_max": lam, "head.depth": depth}, name=f"{lam},{depth}", seeds=(0,))
    assert study().baseline.label == "depth=1, lambda_max=0"
    assert study(baseline="loss.lambda_max=0.50,head.depth=2").baseline.label == "depth=2, lambda_max=0.5"
    assert study(baseline="depth=2, lambda_max=0").baseline.label == "depth=2, lambda_max=0"
    with pytest.raises(UserError, match=r"head.depth=1 fits several arms: depth=1, lambda_max=0; depth=1, lambda_max"):
        study(baseline="head.depth=1")
    with pytest.raises(UserError, match=r"baseline=nobody names no arm: depth=1, lambda_max=0; "):
        study(baseline="nobody")


def test_the_baseline_as_it_was_typed(add: Add, study: Group, config: dict[str, Any]) -> None:
    """An option of a group is in no config, but in the folder's name and in the summary; also one with a list."""
    mlp = {"_target_": "urepa.method.heads.mlp.MLP", "hidden": 64}
    for head, part in (("conv", config["head"]), ("repa_mlp_small", mlp)):
        for lam in (0, 0.5):
            typed = f"evaluation=[knn,samples],head={head},loss.lambda_max={lam}"
            summary = {"overrides": ["evaluation=[knn,samples]", f"head={head}", f"loss.lambda_max={lam}"]}
            changes = {"head": part, "loss.lambda_max": lam}
            # one of each by its folder's name alone, as an unfinished run; the other as a name cut short has it
            add(changes=changes, name=f"cifar10,{typed}", seeds=(0,))
            add(changes=changes, name=f"cut-{head}-{lam}", seeds=(1,), summary=summary)
    for wanted in ("head=conv,loss.lambda_max=0.5", "loss.lambda_max=0.50, +head='conv',evaluation=[knn,samples]"):
        assert study(baseline=wanted).baseline.label == "head=Conv, lambda_max=0.5"
    with pytest.raises(UserError, match=r"baseline=head=conv fits several arms: head=Conv, lambda_max=0; head=Conv, l"):
        study(baseline="head=conv")
    with pytest.raises(UserError, match=r"baseline=head=irepa names no arm: "):
        study(baseline="head=irepa")


def test_the_default_baseline_is_the_arm_from_which_most_differ_in_one_setting(add: Add, study: Group) -> None:
    for ablation, changes in (("a", {"head.depth": 1}), ("b", {}), ("c", {"loss.lambda_max": 0.8})):
        add(ablation, changes, seeds=(0,))
    assert study().baseline.label == "b"
    assert study().why_baseline == "the one that most arms differ from in one setting alone"


def test_without_a_name_the_control_is_the_baseline(add: Add, study: Group) -> None:
    for lam in (0.8, 0.5, 0.0):
        add(changes={"loss.lambda_max": lam}, name=f"{lam}", seeds=(0,))
    assert (study().baseline.label, study().why_baseline) == ("lambda_max=0", "the control with λ = 0")
    add(changes={"loss.lambda_max": 0.0, "head.depth": 1}, name="0,1", seeds=(0,))
    assert study().baseline.label == "depth=2, lambda_max=0"
    assert study().why_baseline == "of the controls with λ = 0 the one that most arms differ from in one setting alone"


def test_short_trials_are_not_chosen_as_the_baseline(add: Add, study: Group) -> None:
    """Five short runs, even on other validation images, beside two long ones; one of the short runs is called
    baseline."""
    trial = {"summary": {"validation_set": W}}
    add(changes={"trainer.max_steps": 50}, name="trial", seeds=(0,), **trial)
    for depth in (1, 3, 4, 5):
        changes = {"trainer.max_steps": 50, "head.depth": depth, "loss.lambda_max": 0.0}
        add("trial", changes, name=f"trial,{depth}", seeds=(0,), **trial)
    for lam in (0.5, 0.0):
        add("other", {"loss.lambda_max": lam}, name=f"{lam}", seeds=(0,))
    found = study()
    assert [arm.label for arm in found.arms] == ["other, lambda_max=0", "other, lambda_max=0.5"]
    assert len(found.apart) == 5


def test_other_lengths_are_compared_with_the_main_ones(add: Add, study: Group) -> None:
    add("short", {"trainer.max_steps": 50, "loss.lambda_max": 0.0}, seeds=(0, 1, 2))
    for lam in (0.5, 0.0):
        add("long", {"loss.lambda_max": lam}, name=f"{lam}", seeds=(0,))
    assert study().baseline.label == "long, lambda_max=0"
    assert study().why_baseline == "the control with λ = 0, of the 2 arms of cifar10 with 600 steps"


def test_a_chosen_baseline_brings_its_code_and_protocol(add: Add, study: Group) -> None:
    add()
    add("new", {"head.depth": 1}, seeds=(0,), summary={"git_commit": "b" * 40, "validation_set": "w" * 16})
    assert study().baseline.label == "baseline"
    found = study(baseline="new")
    assert (found.baseline.label, len(found.arms), len(found.apart)) == ("new", 1, 3)


def test_sweeps(add: Add, study: Group) -> None:
    for lam in (0.0, 0.5, 0.8):
        for depth in (1, 2):
            add(changes={"loss.lambda_max": lam, "head.depth": depth}, name=f"{lam},{depth}", seeds=(0,))
    for steps in (1, 30):
        add(changes={"loss.warmup_steps": steps, "loss.lambda_max": 0.0, "head.depth": 1}, name=f"w{steps}", seeds=(0,))
    grid, line = sweeps(study(baseline="loss.lambda_max=0,head.depth=1,loss.warmup_steps=60"))
    assert (grid.keys, grid.values) == (("loss.lambda_max", "head.depth"), ((0.0, 0.5, 0.8), (1.0, 2.0)))
    assert grid.arms[0.5, 2.0].config["loss.lambda_max"] == "0.5"
    assert grid.arms[0.5, 2.0].config["head.depth"] == "2"
    assert (line.keys, line.values) == (("loss.warmup_steps",), ((1.0, 30.0, 60.0),))


def test_a_line_with_a_hole_is_no_sweep(add: Add, study: Group) -> None:
    for lam, depth in ((0.0, 1), (0.5, 1), (0.5, 2)):
        add(changes={"loss.lambda_max": lam, "head.depth": depth}, name=f"{lam},{depth}", seeds=(0,))
    assert sweeps(study()) == []


def test_a_grid_with_a_hole(add: Add, study: Group) -> None:
    """Each row and column has two cells or more; the baseline has neither setting."""
    for lam in (0.25, 0.5, 0.8):
        for depth in (1, 2):
            if (lam, depth) != (0.8, 2):
                add(changes={"loss.lambda_max": lam, "head.depth": depth}, name=f"{lam},{depth}", seeds=(0,))
    assert [sweep.keys for sweep in sweeps(study())] == [("loss.lambda_max",)], "0.8 has one arm alone: a line"
    add(changes={"loss.lambda_max": 0.8, "head.depth": 3}, name="0.8,3", seeds=(0,))
    add(changes={"loss.lambda_max": 0.5, "head.depth": 3}, name="0.5,3", seeds=(0,))
    add("none", {"loss": {"_target_": "urepa.method.losses.no_loss.NoLoss"}}, seeds=(0,))
    found = study(baseline="none")
    (grid,) = sweeps(found)
    assert grid.values == ((0.25, 0.5, 0.8), (1.0, 2.0, 3.0)) or grid.keys[0] == "head.depth"
    assert len(grid.arms) == 7
    assert found.baseline not in grid.arms.values()


def test_with_a_baseline_without_alignment_every_arm_lists_its_settings(add: Add, study: Group) -> None:
    add("none", {"loss": {"_target_": "urepa.method.losses.no_loss.NoLoss"}})
    for lam in (0.25, 0.5):
        add("urepa", {"loss.lambda_max": lam}, name=f"{lam}")
    found = {arm.label: [str(change) for change in arm.changes] for arm in study(baseline="none").arms[1:]}
    part = "loss: NoLoss → URepaLoss"
    assert found == {f"urepa, lambda_max={lam}": [part, f"loss.lambda_max: — → {lam}"] for lam in (0.25, 0.5)}


def test_where_a_teachers_file_lies_makes_no_other_arm(add: Add, results: Callable[..., Results]) -> None:
    """Its content does (`test_other_images_under_the_same_config_are_another_arm`)."""
    add(changes={"teacher.weights": "a/own_mae.safetensors"}, seeds=(0, 1))
    add(changes={"teacher.weights": "b/own_mae.safetensors"}, seeds=(2,), name="moved")
    add("deep", {"head.depth": 3, "teacher.weights": "c/own_mae.safetensors"})
    baseline, deep = results().rows
    assert list(baseline.arm.runs) == [0, 1, 2]
    assert [str(change) for change in deep.arm.changes] == ["head.depth: 2 → 3"]
    assert deep.cells["val/token"].has_value


def test_nothing_finished(add: Add, study: Group) -> None:
    add(finished=False, seeds=(0, 1))
    with pytest.raises(UserError, match="none of the 2 runs can be compared: .*seed0 is unfinished: its last"):
        study()


def test_runs_measured_with_other_weights_are_set_apart_and_the_report_names_the_weights(
    add: Add, study: Group, results: Callable[..., Results]
) -> None:
    def measured(path: str, digest: str) -> dict[str, Any]:
        file = {"sha256": digest, "accuracy": "0.7031"}
        encoder = {"_target_": "urepa.evaluation.encoders.cifar_cnn.CifarCNN", "weights": path, "weights_file": file}
        return {"evaluation": {"generation": {"encoders": {"cifar_cnn": encoder}}}}

    add(summary=measured("a/cnn", "1" * 64))
    add("moved", {"head.depth": 1}, summary=measured("b/cnn", "1" * 64))
    add("other", {"loss.lambda_max": 0.25}, summary=measured("a/cnn", "2" * 64))
    found = study()
    assert [arm.label for arm in found.arms] == ["baseline", "moved"]
    said = "cifar_cnn.weights is a/cnn (sha256 222222222222), not "
    assert all(said in why and "(sha256 111111111111)" in why for why in reasons(found).values())
    assert len(found.apart) == 3
    place, digest = "generation.encoders.cifar_cnn", "1" * 12
    stated = f"the weights of {place} are sha256 {digest}, a classifier of accuracy 0.7031 on test images"
    assert other_remarks(results()).count(stated) == 1
