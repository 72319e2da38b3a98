"""The studies of conf/study: the configs of their arms, the commands for their caches, and the comparisons."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from launchers.ablation_grid import select_runs, settings_of, split_arguments
from launchers.dependent_jobs import LocalChain
from launchers.named_studies import comparisons, rows_of, runs_of_study
from launchers.study import JobGroup, PlannedRun, compose_run, stages_of
from urepa.cli import CONF
from urepa.config.command_schemas import Study
from urepa.core.errors import UserError
from urepa.core.nested_dicts import flatten
from urepa.runs.identity import differences, is_identity

NAMES = sorted(p.stem for p in (Path(CONF) / "study").glob("*.yaml"))
GIVEN = ["data.source=folder", "data.images=/somewhere/photos"]
COUNTED = {name: ["data.num_classes=1"] for name in ("lora_alignment", "families")}  # of a folder that is not here
COUNTED |= {
    "nanodit": ["data.num_classes=1"],
    "nanodit_warm": ["data.num_classes=1", "warm_start.checkpoint=/some/run"],
}
SMALL: dict[str, Any] = {
    "overrides": ["+experiment=repa_cifar10_cpu", "trainer.max_steps=300"],
    "baseline": "base",
    "controls": {},
    "arms": {"base": [], "none": ["loss=none"], "late": ["~loss.taps.block_1", "+loss.taps.block_3=1"]},
}


@pytest.fixture(autouse=True, scope="module")
def _prepared(compose: Callable[..., Any]) -> None:
    """Hydra knows the schema and the resolvers."""


def small(
    table: dict[str, Any] | None = None,
    arms: Sequence[str] | None = None,
    given: Sequence[str] = GIVEN,
    seeds: tuple[int, ...] = (0,),
) -> list[PlannedRun]:
    return runs_of_study("small", SMALL | ({} if table is None else table), arms, seeds, given, 1)


def commands(stages: list[JobGroup], name: str) -> list[str]:
    return [" ".join(command) for s in stages if s.name == name for job in s.jobs for command in job.commands]


@functools.cache
def composed(name: str) -> tuple[dict[str, Any], list[PlannedRun], list[tuple[str, ...]]]:
    """For a file of conf/study: the study's settings, its runs and the comparisons. It takes a second per arm."""
    own, rest = split_arguments([f"study={name}", "seeds=0,1", *GIVEN, *COUNTED.get(name, [])])
    settings = settings_of(own)
    runs, compared = select_runs(settings, name, rest, 1)
    assert compared is not None
    return settings, runs, compared


# What the arms of which_choice differ in from their baseline, key by key
WHICH_CHOICE: dict[str, dict[str, Any]] = {
    "stride_8": {"teacher.stride": 8},
    "stride_32": {"teacher.stride": 32, "teacher.grid": [4, 4]},
    "tap_0": {"loss.taps.block_1": None, "loss.taps.block_0": 1},
    "tap_2": {"loss.taps.block_1": None, "loss.taps.block_2": 1},
    "tap_3": {"loss.taps.block_1": None, "loss.taps.block_3": 1},
    "tap_4": {"loss.taps.block_1": None, "loss.taps.block_4": 1},
    "no_spatial_norm": {"loss.spatial_norm": None},
    "lambda_0.25": {"loss.lambda_max": 0.25},
    "lambda_1": {"loss.lambda_max": 1.0},
    "manifold_3": {"loss.manifold_weight": 3.0},
    "class": {"data.cfg_dropout": 0.1},
    "uniform_t": {"objective.draw": "uniform"},
}
LOSS, HEAD = "loss._target_", "head._target_"
EXCHANGED = {
    "control": {LOSS: "urepa.method.losses.no_loss.NoLoss"},
    "class_control": {LOSS: "urepa.method.losses.no_loss.NoLoss", "data.cfg_dropout": 0.1},
    "uniform_t_control": {LOSS: "urepa.method.losses.no_loss.NoLoss", "objective.draw": "uniform"},
    "head_linear": {HEAD: "urepa.method.heads.conv.Conv", "head.depth": 1},
    "head_mlp": {HEAD: "urepa.method.heads.mlp.MLP"},
    "head_3x3": {HEAD: "urepa.method.heads.spatial.Spatial"},
}


@pytest.mark.slow  # twenty arms and more are composed
@pytest.mark.parametrize("name", NAMES)
def test_every_study_composes_and_compares(name: str) -> None:
    """Each arm of each file, before anything starts; the comparison's names are those of the runs' folders."""
    settings, runs, (all_of_them, *of_controls) = composed(name)
    table = settings["study"]
    assert [run.arm for run in runs] == [arm for arm in table["arms"] for _ in (0, 1)]
    ids, called, order, *baseline = all_of_them
    assert ids == "ids=[" + ",".join(f"'{run.name}'" for run in runs) + "]"
    names = re.findall(r"'([\w.+-]+)=([^']+)'", called)
    assert dict(names) == {run.arm: run.name.rpartition("/")[0] for run in runs}
    assert order == "order=[" + ",".join(f"'{arm}'" for arm in table["arms"]) + "]"
    assert baseline == [f"baseline='{table['baseline']}'"]
    assert len(of_controls) == len(set(table["controls"].values()))
    for arguments, control in zip(of_controls, dict.fromkeys(table["controls"].values()), strict=True):
        own = [arm for arm in table["arms"] if control in (arm, table["controls"].get(arm))]
        assert arguments[0] == "ids=[" + ",".join(f"'{run.name}'" for run in runs if run.arm in own) + "]"
        assert arguments[2:] == (
            "order=[" + ",".join(f"'{arm}'" for arm in own) + "]",
            f"baseline='{control}'",
            f"report='report_{control}'",
        )
    assert set(table) == set(Study.__annotations__)


@pytest.mark.slow
def test_which_choice_changes_one_thing_an_arm() -> None:
    runs = {run.arm: flatten(run.config) for run in composed("which_choice")[1][::2]}
    base = runs.pop("baseline")
    half = ["trainer.max_steps=500", "optimizer.warmup_ratio=0.4"]
    by_hand = compose_run(["+experiment=repa_cifar10_cpu", *half, *GIVEN, "seed=0"], 1)
    assert flatten(by_hand.config) == base
    assert runs.keys() == WHICH_CHOICE.keys() | EXCHANGED.keys()
    for arm, config in runs.items():
        differ = {k: config.get(k) for k in config.keys() | base.keys() if config.get(k) != base.get(k)}
        differ = {k: v for k, v in differ.items() if is_identity(k)}
        if arm in WHICH_CHOICE:
            assert differ == WHICH_CHOICE[arm], arm
        else:
            part = next(iter(EXCHANGED[arm])).partition(".")[0]
            others = {k: v for k, v in EXCHANGED[arm].items() if not k.startswith(f"{part}.")}
            assert {k: v for k, v in differ.items() if not k.startswith(f"{part}.")} == others, arm
            assert EXCHANGED[arm].items() <= config.items(), arm


@pytest.mark.slow
def test_each_teachers_tokens_are_made_once_of_the_same_images() -> None:
    """Below one root, in folders with names of their own; arms with other heads, taps and losses share the baseline's
    tokens."""
    settings, runs, compared = composed("which_choice")
    stages = stages_of(runs, settings, 1, compared)
    made = commands(stages, "preprocess")
    track = "urepa.preprocess data=cifar10_12k teacher=efficientnet_lite0_s16"
    images = "data.source='folder' data.images='/somewhere/photos'"
    assert sorted(made) == sorted(
        [
            f"{track} {images} stage=all",
            f"{track} {images} teacher.stride=8 stage=all",
            f"{track} {images} teacher.grid=[4,4] teacher.stride=32 stage=all",
        ]
    )
    assert len({run.config["data"]["root"] for run in runs}) == 1
    after = {s.jobs[0].commands[0]: len(s.jobs) for s in stages if s.name == "train"}
    assert sorted(after.values()) == [2, 2, len(runs) - 4]


@pytest.mark.slow
def test_the_same_run_by_hand_is_the_same_run() -> None:
    runs = small(seeds=(0, 7))
    by_hand = compose_run(["seed=7", "loss=none", *GIVEN, "trainer.max_steps=300", "+experiment=repa_cifar10_cpu"], 1)
    (same,) = [run for run in runs if run.name == by_hand.name]
    assert (same.arm, same.config) == ("none", by_hand.config)
    assert len({run.name for run in runs}) == len(runs) == 6


@pytest.mark.slow
def test_the_command_overrides_the_study_and_an_arm_overrides_both() -> None:
    table = {"arms": {"base": [], "wide": ["head.hidden=99"]}}
    base, wide = small(table, given=[*GIVEN, "trainer.max_steps=50", "head.hidden=44"])
    assert [run.config["trainer"]["max_steps"] for run in (base, wide)] == [50, 50]
    assert [run.config["head"]["hidden"] for run in (base, wide)] == [44, 99]
    assert differences(base.config, wide.config) == ["head.hidden: 44 there, 99 here"]


@pytest.mark.slow
def test_chosen_arms_have_the_tables_order() -> None:
    runs = small(arms=["late", "base"])
    assert [run.arm for run in runs] == ["base", "late"]
    assert rows_of(SMALL, runs) == "  base\n  late  ~loss.taps.block_1 +loss.taps.block_3=1"
    (only,) = comparisons(SMALL | {"controls": {"late": "none"}}, runs)
    assert only[3:] == ("baseline='base'",), "a control that is not run leads no comparison"
    (only,) = comparisons(SMALL, small(arms=["late", "none"]))
    assert only[2:] == ("order=['none','late']",), "nor does a baseline"


@pytest.mark.fast(5)
@pytest.mark.parametrize(
    ("table", "arms", "given", "words"),
    [
        ({}, ["lat"], GIVEN, "arms: study=small has no arm 'lat'; it has base, none, late (did you mean 'late'?)"),
        ({"baseline": "bse"}, None, GIVEN, "baseline: bse is none of its arms (did you mean 'base'?)"),
        ({"controls": {"late": "nne"}}, None, GIVEN, "controls: nne is none of its arms (did you mean 'none'?)"),
        ({"arms": {"base": [], "a b": ["loss=none"]}}, None, GIVEN, "the arm 'a b' needs a name of letters, digits"),
        ({"arms": {"base": [], "x": ["seed=3"]}}, None, GIVEN, "x gives a seed; leave it out, seeds=0,1,2 gives"),
        ({"overrides": ["seed=3"]}, None, GIVEN, "overrides gives a seed"),
        ({}, None, ["+experiment=cifar10"], "study=small is of +experiment=repa_cifar10_cpu: leave out +experiment"),
        (
            {"arms": {"base": [], "x": ["loss.lamda_max=1"]}},
            None,
            GIVEN,
            "arm x of study=small: there is no key 'loss.lamda_max' (did you mean 'loss.lambda_max'?)",
        ),
        ({"arms": {"base": [], "x": ["head=iripa"]}}, None, GIVEN, "arm x of study=small: head has no option 'iripa'"),
        ({"arms": {"base": [], "x": ["nonsense"]}}, None, GIVEN, "arm x of study=small: 'nonsense' is no KEY=VALUE"),
        (
            {"arms": {"base": [], "x": ["teacher.stride=4"]}},
            None,
            GIVEN,
            "arm x of study=small: teacher.stride=4: give one of 8, 16, 32",
        ),
        (
            {"arms": {"base": [], "x": ["loss.lambda_max=0.5"]}},
            None,
            GIVEN,
            "study=small: the arms base and x are the same run, as the command is given",
        ),
    ],
)
def test_mistakes_are_reported_in_one_sentence(
    table: dict[str, Any], arms: list[str] | None, given: list[str], words: str
) -> None:
    with pytest.raises(UserError, match=re.escape(words)) as refused:
        small(table, arms, given)
    assert "\n" not in str(refused.value)


@pytest.mark.slow
def test_a_dry_run_names_the_stages_and_the_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = small(seeds=(0, 1))
    settings = settings_of(["stages=[train,compare]"])
    stages = stages_of(runs, settings, 1, comparisons(SMALL | {"controls": {"late": "none"}}, runs))
    capsys.readouterr()
    LocalChain({"at_once": 2, "gpus": [], "folder": str(tmp_path / "jobs")}, tmp_path).show(stages, tmp_path / "all")
    said = capsys.readouterr().out
    assert "0: train, 6 jobs, 2 at a time" in said
    whole, of_control = (tmp_path / "all" / "1_compare.txt").read_text().splitlines()
    assert whole.count("/seed") == 6
    assert whole.endswith("order=['base','none','late'] baseline='base'")
    assert of_control.count("/seed") == 4
    assert of_control.endswith("order=['none','late'] baseline='none' report='report_none'")
