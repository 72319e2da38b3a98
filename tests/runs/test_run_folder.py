"""The same command finds the same folder, and another config is refused there."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from urepa.core.errors import UserError
from urepa.core.files import write_whole
from urepa.core.nested_dicts import replace_value
from urepa.runs.identity import differences, is_identity
from urepa.runs.run_folder import (
    LONGEST_NAME,
    Names,
    RunFolder,
    extend_names,
    find_name,
    flatten,
    own_overrides,
    parse_overrides,
    remove_empty,
    run_name,
    stored_names,
)


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "quickstart/seed0"),
        (["seed=0"], "quickstart/seed0"),
        (["+experiment=cifar10"], "cifar10/seed0"),
        (["+experiment=cifar10", "+ablation=lambda_0"], "cifar10+lambda_0/seed0"),
        (["head.depth=1"], "quickstart,head.depth=1/seed0"),
        (["+experiment=cifar10", "head.depth=1"], "cifar10,head.depth=1/seed0"),
        (["head.depth=1", "head.depth=2"], "quickstart,head.depth=2/seed0"),
        (["+loss.taps.enc_last=1"], "quickstart,loss.taps.enc_last=1/seed0"),
        (["data.images=/here/photos/"], "quickstart,data.images=photos/seed0"),
        (["data.images=uoft-cs/cifar10"], "quickstart,data.images=cifar10/seed0"),
    ],
)
def test_a_run_is_named_by_its_command(overrides: list[str], name: str) -> None:
    assert run_name(overrides, 0) == name


def test_a_run_named_without_its_images_is_found(tmp_path: Path, config: dict[str, Any]) -> None:
    overrides = ["data=folder", "data.images=/now/here/photos"]
    named, former = (
        tmp_path / name for name in ("quickstart,data=folder,data.images=photos", "quickstart,data=folder")
    )
    assert find_name(overrides, 0, tmp_path) == f"{named.name}/seed0"
    for images, found in (("others", named), ("then/there/photos", former)):
        (former / "seed0").mkdir(parents=True, exist_ok=True)
        RunFolder(former / "seed0").store_config(replace_value(config, "data.images", images))
        assert find_name(overrides, 0, tmp_path) == f"{found.name}/seed0"
    (named / "seed0").mkdir(parents=True)
    (named / "seed0" / "config.yaml").write_text("data: {images: photos}\n")
    assert find_name(overrides, 0, tmp_path) == f"{named.name}/seed0"


def test_a_run_with_a_former_key_is_found_and_is_the_same_arm(tmp_path: Path, config: dict[str, Any]) -> None:
    overrides = ["data=folder", "data.images=photos", "schedule.stop_step=50", "loss.lambda_max=0.1"]
    name = "quickstart,data=folder,data.images=photos,loss.lambda_max=0.1,schedule.stop_step=50"
    former = name.replace(",schedule.stop_step", ",loss.stop_step")
    without_images = former.replace(",data.images=photos", "")
    assert find_name(overrides, 0, tmp_path) == f"{name}/seed0"
    for found in (without_images, former, name):  # each of a later version than the one before
        (tmp_path / found / "seed0").mkdir(parents=True)
        RunFolder(tmp_path / found / "seed0").store_config(replace_value(config, "data.images", "photos"))
        assert find_name(overrides, 0, tmp_path) == f"{found}/seed0"
        assert find_name(overrides[:2], 0, tmp_path) == "quickstart,data=folder,data.images=photos/seed0"
    arms = [stored_names(tmp_path / found / "seed0") for found in (former, name)]
    assert arms[0] == arms[1]
    assert "schedule.stop_step=50" in arms[0].overrides


def test_the_order_of_overrides_does_not_matter() -> None:
    one = ["+experiment=cifar10", "loss.lambda_max=0", "head.depth=1", "seed=3"]
    assert run_name(one, 3) == run_name(one[::-1], 3) == "cifar10,head.depth=1,loss.lambda_max=0/seed3"


@pytest.mark.parametrize(
    "override",
    [
        "tracking=none",
        "tracking.uri=http://there",
        "data.root=/elsewhere",
        "trainer.log_every=5",
        "trainer.threads=2",
        "hydra/launcher=slurm",
        "hydra.job.chdir=false",
    ],
)
def test_keys_that_are_not_identity_do_not_name_a_run(override: str) -> None:
    assert run_name([override], 0) == "quickstart/seed0"


@pytest.mark.parametrize(
    "override", ["trainer.max_steps=5", "data=cifar10", "data.limit=5", "loss=none", "trainer.deterministic=true"]
)
def test_keys_that_are_identity_name_a_run(override: str) -> None:
    assert run_name([override], 0) == f"quickstart,{override}/seed0"


def test_identity_goes_by_whole_key_parts() -> None:
    assert not is_identity("tracking.uri")
    assert is_identity("trackings")
    assert is_identity("data.rooted")
    assert is_identity("data")


def test_a_slash_never_makes_a_folder() -> None:
    name = run_name(["loss.x=a/b", "backbone.y=[1,2]"], 0)
    assert name.count("/") == 1
    assert name == "quickstart,backbone.y=%5B1,2%5D,loss.x=a%2Fb/seed0"


def test_names_that_are_quoted_alike_are_distinguished() -> None:
    assert run_name(["loss.x=a/b"], 0) != run_name(["loss.x=a%2Fb"], 0)


def test_long_names_end_in_a_hash() -> None:
    many = [f"loss.some_long_key_{i}={i}" for i in range(20)]
    names = [run_name(many, 0), run_name([*many[:-1], "loss.some_long_key_19=20"], 0)]
    assert names[0] != names[1]
    assert all(len(name.removesuffix("/seed0")) <= LONGEST_NAME for name in names)
    assert run_name(many[::-1], 0) == names[0]


def test_resuming_names_the_folder_itself() -> None:
    assert run_name(["resume=outputs/quickstart/seed0", "trainer.max_steps=9"], 5) == "quickstart/seed0"
    assert run_name(["resume=null"], 5) == "quickstart/seed5"


def test_overrides_are_read_as_hydra_reads_them() -> None:
    given = ["+a=1", "++b=x=y", "c=1", "+c@d.e=2", "c@_global_.f=4", "a=3"]
    assert parse_overrides(given) == {"a": "3", "b": "x=y", "c": "1", "d.e": "2", "f": "4"}


def test_flatten_keeps_lists_and_empty_dicts() -> None:
    nested = {"a": {"b": 1, "c": {"d": [1, 2]}}, "e": {}, "f": None}
    assert flatten(nested) == {"a.b": 1, "a.c.d": [1, 2], "e": {}, "f": None}


def test_differences_name_key_and_both_values() -> None:
    stored = {"a": 1, "b": {"c": 2, "gone": 3}, "tracking": {"uri": "x"}, "trainer": {"log_every": 1}}
    current = {"a": 1, "b": {"c": 5, "new": 4}, "tracking": {"uri": "y"}, "trainer": {"log_every": 2}}
    assert differences(stored, current) == [
        "b.c: 2 there, 5 here",
        "b.gone: 3 there, nothing here",
        "b.new: nothing there, 4 here",
    ]
    assert differences(stored, stored) == []


@pytest.mark.parametrize(
    ("overrides", "arm"),
    [
        ([], "baseline"),
        (["+experiment=cifar10", "seed=1", "tracking=none"], "baseline"),
        (["+ablation=lambda_0"], "lambda_0"),
        (["loss.lambda_max=0.25"], "loss.lambda_max=0.25"),
        (["+ablation=baseline", "head.depth=1"], "head.depth=1"),
        (["+ablation=lora_16", "teacher.grid=[2,2]", "head.depth=1"], "lora_16, head.depth=1, teacher.grid=[2,2]"),
        (["loss.x=a/b%", "+loss.taps.mid=1"], "loss.taps.mid=1, loss.x=a/b%"),
    ],
)
def test_an_arm_is_what_its_command_changed(tmp_path: Path, overrides: list[str], arm: str) -> None:
    """Given by the command, and read again from the folder's name."""
    given = parse_overrides(overrides)
    names = Names(
        given.get("experiment", "quickstart"), given.get("ablation", "baseline"), tuple(own_overrides(overrides))
    )
    assert names.arm == arm
    assert stored_names(tmp_path / run_name(overrides, 0)) == names


def test_an_extended_run_records_its_later_end() -> None:
    names = Names("quickstart", "baseline", ("head.depth=1", "trainer.max_steps=4"))
    assert extend_names(names, 8).overrides == ("head.depth=1", "trainer.max_steps=8")


# --- the folder ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def config(compose: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """The quickstart's config, as a run stores it."""
    composed = compose()
    del composed["arm"]
    return composed


def test_a_new_folder_takes_the_config_and_gives_it_back(tmp_path: Path, config: dict[str, Any]) -> None:
    folder = RunFolder(tmp_path)
    assert folder.stored_config() is None
    assert folder.merge_config(config) == config
    folder.store_config(config)
    assert folder.stored_config() == config
    assert folder.merge_config(config) == config


def test_another_config_is_refused_with_the_difference_and_changes_nothing(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    folder = RunFolder(tmp_path)
    folder.store_config(config)
    with pytest.raises(UserError, match=r"another config \(loss.lambda_max: 0.5 there, 0 here\); .*resume=FOLDER"):
        folder.merge_config(replace_value(config, "loss.lambda_max", 0))
    assert folder.stored_config() == config


def test_a_changed_key_that_is_not_identity_is_stored(tmp_path: Path, config: dict[str, Any]) -> None:
    folder = RunFolder(tmp_path)
    folder.store_config(config)
    changed = replace_value(config, "trainer.log_every", 5)
    folder.store_config(folder.merge_config(changed))
    assert folder.stored_config() == changed


@pytest.mark.slow
def test_a_key_added_later_gets_the_former_behaviour(tmp_path: Path, config: dict[str, Any]) -> None:
    """Unless the command gives the key; then it is another config."""
    folder, warm = RunFolder(tmp_path), "trainer.ema_warmup"
    on, off = (replace_value(config, warm, value) for value in (True, False))
    before = config | {"trainer": {k: v for k, v in config["trainer"].items() if k != "ema_warmup"}}
    folder.config_file.write_text(json.dumps(before))  # as stored before ema_warmup was there; JSON is YAML too
    assert folder.merge_config(on) == off
    assert folder.merge_config(off, [warm])
    with pytest.raises(UserError, match="ema_warmup: False there, True here"):
        folder.merge_config(on, [warm])
    folder.store_config(on)
    with pytest.raises(UserError, match="ema_warmup: True there, False here"):
        folder.merge_config(off)


def test_a_folder_has_one_owner_at_a_time(tmp_path: Path) -> None:
    first, second = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    first.claim()
    with pytest.raises(UserError, match=r"being trained by another process \(pid \d+ on"):
        second.claim()
    first.release()
    second.claim()
    second.release()
    second.release()


@pytest.mark.slow
def test_a_requeued_job_waits_for_its_predecessor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("urepa.runs.run_folder.LOCK_POLL", 0.05)
    first, second = RunFolder(tmp_path), RunFolder(tmp_path)
    first.claim()
    with pytest.raises(UserError, match=r"is being trained by another process still, after 0.2 s \(pid \d+ on "):
        second.claim(patience=0.2)
    threading.Timer(0.3, first.release).start()
    second.claim(patience=60.0)
    assert "is still held by pid" in capsys.readouterr().out
    with pytest.raises(UserError, match="is being trained by another process"):
        first.claim()


def killed_before_renaming(path: Path) -> None:
    """A process that dies while it writes a file."""
    child = os.fork()
    if child == 0:
        os.replace = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
        write_whole(path, "{}")
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL


@pytest.mark.slow
def test_files_half_written_by_a_killed_owner_are_removed(tmp_path: Path) -> None:
    first, second = RunFolder(tmp_path), RunFolder(tmp_path)
    (tmp_path / "samples").mkdir()
    killed_before_renaming(tmp_path / "mlflow.json")
    killed_before_renaming(tmp_path / "samples" / "step_00000005.png")
    assert len(list(tmp_path.rglob(".*.tmp"))) == 2
    first.claim()
    assert not list(tmp_path.rglob(".*.tmp"))
    killed_before_renaming(tmp_path / "mlflow.json")
    with pytest.raises(UserError, match="is being trained by another process"):
        second.claim()
    assert list(tmp_path.rglob(".*.tmp")), "it may still be being written"
    first.release()


def test_a_refused_command_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its folder and those that only it used are removed, and nothing else."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs" / "other").mkdir(parents=True)
    path = tmp_path / "outputs" / "quickstart" / "seed0"
    path.mkdir(parents=True)  # by Hydra
    first = RunFolder(path)
    first.claim()
    first.store_config({"seed": 0})
    second = RunFolder(path)
    with pytest.raises(UserError, match="is being trained by another process"):
        second.claim()
    second.remove_if_new()
    assert (path / "config.yaml").exists(), "it is not its owner's"
    first.remove_if_new()
    first.release()
    assert [p.name for p in (tmp_path / "outputs").iterdir()] == ["other"]


def test_existing_files_are_kept(tmp_path: Path) -> None:
    for left in ("config.yaml", "metrics.jsonl"):
        path = tmp_path / left / "seed0"
        path.mkdir(parents=True)
        if left == "config.yaml":
            (path / left).write_text("seed: 0\n")
        folder = RunFolder(path)
        folder.claim()
        folder.store_config({"seed": 0})
        (path / left).touch()  # training has begun
        folder.remove_if_new()
        folder.release()
        assert {p.name for p in path.iterdir()} == {".lock", "config.yaml", left}
    remove_empty(path)
    assert path.exists()


def test_a_title_begins_with_the_swept_keys() -> None:
    overrides = ("backbone.head_dim=8", "data.limit=100", "head.depth=1", "loss.lambda_max=0.5", "trainer.max_steps=6")
    names = Names("x", "baseline", overrides)
    assert names.title(2) == (
        "head.depth=1, loss.lambda_max=0.5, backbone.head_dim=8, data.limit=100, trainer.max_steps=6, seed 2 · x"
    )


def test_the_path_of_an_encoders_weights_is_not_identity() -> None:
    """Nor does data.root, where they are."""
    there, here = ({"evaluation": {"fd": {"encoders": {"cnn": {"weights": at}}, "subset": 5}}} for at in ("a", "b"))
    assert differences(there, here) == []
    here["evaluation"]["fd"]["subset"] = 6
    assert differences(there, here) == ["evaluation.fd.subset: 5 there, 6 here"]
    assert differences({"backbone": {"weights": "a"}}, {"backbone": {"weights": "b"}}) != []
