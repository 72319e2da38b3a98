"""Runs that are found in folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up import changed

from urepa.compare import empty_runs_note, other_folders_note, started_runs
from urepa.core.errors import UserError
from urepa.reports.comparison.arms import group_runs
from urepa.reports.comparison.read_runs import Run, find_all, find_folders, load_curves, select


@pytest.fixture
def found(add: Callable[..., None], tmp_path: Path) -> Callable[[str], list[Run]]:
    """Two arms, one with a tag of the user's; checkpoints contain a config too."""
    add(seeds=(0, 1))
    add("lora_16", {"head.depth": 1, "tracking.tags": {"set": "a=b"}}, seeds=(0,))
    inner = tmp_path / "outputs" / "cifar10+baseline" / "seed0" / "checkpoints" / "step_00000600"
    inner.mkdir(parents=True)
    (inner / "config.yaml").write_text("seed: 0")
    return lambda pattern: find_folders(str(tmp_path / pattern))


def test_folders_and_patterns(found: Callable[[str], list[Run]]) -> None:
    assert [run.name for run in found("outputs")] == [
        "cifar10+baseline/seed0",
        "cifar10+baseline/seed1",
        "cifar10+lora_16/seed0",
    ]
    assert len(found("outputs/*lora*")) == 1
    assert len(found("outputs/cifar10+baseline/seed1")) == 1
    with pytest.raises(UserError, match="there are no runs in .*nowhere; give runs=FOLDER"):
        found("nowhere")


def test_configs_of_other_programs_are_ignored(found: Callable[[str], list[Run]], tmp_path: Path) -> None:
    """Whatever they contain, they are named; if there is nothing else, one sentence reports it."""
    texts = ("", "foo: 1", "- 1\n- 2", "a: [1", "tracking: {tags: null}", "seed: 0\nteacher: 3", "a: \udcff")
    for i, text in enumerate(texts):
        folder = tmp_path / "outputs" / f"other{i}"
        folder.mkdir()
        (folder / "config.yaml").write_bytes(text.encode(errors="surrogateescape"))
    whole = (tmp_path / "outputs" / "cifar10+lora_16" / "seed0" / "config.yaml").read_text()
    folder = tmp_path / "outputs" / "other_summary"
    folder.mkdir()
    (folder / "config.yaml").write_text(whole)
    (folder / "summary.json").write_text("[]")
    runs, foreign = find_all(str(tmp_path / "outputs"))
    assert len(runs) == 3
    assert [path.name for path in foreign] == [*(f"other{i}" for i in range(len(texts))), "other_summary"]
    assert other_folders_note(foreign)[0].startswith("Passed over, as their config.yaml is not a run's: 8 (")
    with pytest.raises(UserError, match=r"there are no runs in .*other1, but 1 other config.yaml \(first: .*other1"):
        found("outputs/other1")


def test_a_folders_name_may_be_invalid_utf_8(add: Callable[..., None], tmp_path: Path) -> None:
    """Bytes that are not UTF-8, for example from an old disk: in the run's name, and in its names if there is no
    summary."""
    add(seeds=(0,), name="caf\udce9", finished=False)
    (run,) = find_folders(str(tmp_path / "outputs"))
    assert Path(run.id).is_dir()
    assert (run.name, run.experiment) == ("caf\\udce9/seed0", "caf\\udce9")


def test_curves_are_the_rows(found: Callable[[str], list[Run]]) -> None:
    """Step by step, including values that are not finite (strings in the file), without the half line of a kill."""
    run = found("outputs")[0]
    file = Path(run.id) / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text(file.read_text() + json.dumps({"step": 700, "train/total": "nan", "time": 1}) + '\n{"step": 8')
    (full,) = load_curves([run])
    curve = full.curves["train/total"]
    np.testing.assert_array_equal(curve.steps, [r["step"] for r in rows if "train/total" in r] + [700])
    np.testing.assert_array_equal(curve.values[:-1], [r["train/total"] for r in rows if "train/total" in r])
    assert np.isnan(curve.values[-1])
    assert full.last("final/tap_knn") == rows[-1]["final/tap_knn"]
    assert full.last("val/nothing") is None
    assert (full.started, full.last_step, full.status) == (rows[0]["time"], 700, "finished")


def names_apart(runs: list[Run]) -> dict[str, str]:
    study = group_runs(load_curves(runs), [], None)
    assert not {apart.run.id for apart in study.apart} & {run.id for arm in study.arms for run in arm.runs.values()}
    return {apart.run.name: apart.reason for apart in study.apart}


def damage(run: Run, line: int) -> None:
    """Damages one byte of a line of its metrics.jsonl."""
    file = Path(run.id) / "metrics.jsonl"
    lines = file.read_bytes().split(b"\n")
    lines[line - 1] = lines[line - 1].replace(b":", b";", 1)
    file.write_bytes(b"\n".join(lines))


@pytest.mark.parametrize("line", [1, 6, 20, 21])
def test_a_damaged_run_is_set_apart_and_others_compare(found: Callable[[str], list[Run]], line: int) -> None:
    """At every position; the run is read to its end."""
    runs = found("outputs")
    damage(runs[1], line)
    (full,) = load_curves([runs[1]])
    assert full.last_step == 600
    reason = names_apart(runs)
    assert reason.keys() == {"cifar10+baseline/seed1"}
    assert reason["cifar10+baseline/seed1"].startswith(f"damaged: line {line} of metrics.jsonl is not JSON; put the")


def test_a_finished_run_whose_rows_end_before_it_is_set_apart(found: Callable[[str], list[Run]]) -> None:
    """Cut after a whole line, and within one."""
    runs = found("outputs")
    for more in (b"", b'{"step": 3'):
        file = Path(runs[0].id) / "metrics.jsonl"
        file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:8]) + more)
        step = json.loads(file.read_bytes().splitlines()[7])["step"]
        assert names_apart(runs)["cifar10+baseline/seed0"] == (
            f"damaged: metrics.jsonl ends at step {step} and the run at step 600; put the file back from a copy"
        )


def test_a_run_without_a_readable_line_is_named(found: Callable[[str], list[Run]]) -> None:
    runs = found("outputs")
    (Path(runs[0].id) / "metrics.jsonl").write_text("#\n")
    full = started_runs(load_curves(runs))
    assert [run.name for run in full] == [run.name for run in runs]
    assert empty_runs_note(full) == []
    with pytest.raises(
        UserError, match=r"none of the 1 runs can be compared: cifar10.baseline/seed0 is damaged: line 1"
    ):
        group_runs(full[:1], [], None)


def test_an_unfinished_run_is_known_by_its_folders_name(add: Callable[..., None], found: Callable[..., Any]) -> None:
    add(
        "no_warmup",
        {"loss.warmup_steps": 0},
        seeds=(4,),
        finished=False,
        name="cifar10+no_warmup,trainer.max_steps=600",
    )
    (run,) = found("outputs/*no_warmup*")
    assert (run.experiment, run.ablation, run.seed, run.status) == ("cifar10", "no_warmup", 4, "unfinished")


def test_a_run_that_is_being_extended_is_unfinished(add: Callable[..., None], tmp_path: Path, config: Any) -> None:
    from omegaconf import OmegaConf

    add(seeds=(0,))
    file = tmp_path / "outputs" / "cifar10+baseline" / "seed0" / "config.yaml"
    file.write_text(OmegaConf.to_yaml(OmegaConf.create(changed(config, {"trainer.max_steps": 900}))))
    (run,) = find_folders(str(tmp_path / "outputs"))
    assert run.status == "unfinished"
    assert run.facts["extended_from"] == 600, "as once it is finished"


def test_selection(found: Callable[[str], list[Run]]) -> None:
    runs = found("outputs")

    def names(*asked: Any) -> list[str]:
        return [run.name for run in select(runs, *asked)]

    assert names([], [], None, []) == [run.name for run in runs]
    assert names(["cifar10"], ["lora*"], None, []) == ["cifar10+lora_16/seed0"]
    assert names([], [], "set=a=b", []) == ["cifar10+lora_16/seed0"]
    assert names([], [], "seed=1", []) == ["cifar10+baseline/seed1"]
    assert names([], [], None, [runs[1].id, "cifar10+lora_16/seed0"]) == [runs[1].name, runs[2].name]
    assert names([], [], None, [f"{runs[1].id}/"]) == [runs[1].name]
    assert names([], [], None, ["lora_16, seed 0 · cifar10"]) == ["cifar10+lora_16/seed0"]
    with pytest.raises(
        UserError, match=r"ids=none,there: there is no such run; give MLflow run ids or names, or run folders"
    ):
        names([], [], None, [runs[0].id, "none", "there/"])
    with pytest.raises(UserError, match="tag=set: give tag=KEY=VALUE"):
        names([], [], "set", [])
    with pytest.raises(UserError, match=r"experiment=b: no run here has that; there are: cifar10$"):
        names(["cifar10", "b"], [], None, [])
    with pytest.raises(UserError, match=r"ablation=lora_17: .* \(did you mean 'lora_16'\?\)"):
        names([], ["baseline", "lora_17"], None, [])
    with pytest.raises(UserError, match=r"tag=sed=1: no run here has a tag 'sed'; .* \(did you mean 'seed'\?\)"):
        names([], [], "sed=1", [])
    at_once = "none of the 3 runs matches ablation=lora_16 and tag=seed=1 at once: leave one of them out"
    with pytest.raises(UserError, match=at_once):
        names([], ["lora_16"], "seed=1", [])
