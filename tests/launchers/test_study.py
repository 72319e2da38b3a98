"""A study's jobs: their commands, their numbers of GPUs and their dependencies."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose as compose_hydra
from hydra import initialize_config_dir
from hydra.errors import HydraException

from launchers.ablation_grid import settings_of, split_arguments
from launchers.dependent_jobs import LocalChain
from launchers.study import JobGroup, PlannedRun, add_arguments, compose_run, runs_of, stages_of
from launchers.study_hours import plan_configs, training_hours
from urepa.cli import CONF
from urepa.config.command_line import quote_argument
from urepa.core.errors import UserError
from urepa.costs.estimate import Device, plan
from urepa.plan import hours
from urepa.runs.run_folder import parse_overrides, to_plain

TRACK_A = ["+experiment=track_a", "data.root=/data"]


@pytest.fixture(autouse=True)
def _prepared(compose: Callable[..., Any]) -> None:
    """Hydra knows the schema and the resolvers."""


def composed(*arms: str, rest: list[str] = TRACK_A, gpus: int = 8, seeds: tuple[int, ...] = (0, 1)) -> list[PlannedRun]:
    return runs_of(arms, seeds, rest, gpus)


def stages(of: list[PlannedRun], *own: str, gpus: int = 8) -> list[JobGroup]:
    return stages_of(of, settings_of(["cluster=slurm", "shards=2", *own]), gpus)


def commands(stage: JobGroup) -> list[str]:
    return [" ".join(command) for job in stage.jobs for command in job.commands]


@pytest.mark.slow
def test_a_latent_track_from_images_to_the_table() -> None:
    manifest, shards, verify, train, evaluate, compare = stages(composed("baseline", "lora_16"), "evaluate=digits")
    caches = "urepa.preprocess data=track_a teacher=dinov2_l data.root='/data'"
    assert commands(manifest) == [f"{caches} stage=manifest", f"{caches} stage=prompts"]
    assert commands(shards) == [
        f"{caches} shard={i}/2 stage={stage}" for i in (0, 1) for stage in ("images", "latents", "tokens")
    ]
    assert commands(verify) == [f"{caches} stage=verify"]
    assert commands(train)[3] == "urepa.train +experiment=track_a data.root=/data +ablation=lora_16 seed=1"
    assert train.jobs[3].run == str(Path("outputs/track_a+lora_16/seed1").absolute())
    assert commands(evaluate)[3] == "urepa.evaluate run='outputs/track_a+lora_16/seed1' evaluation=digits"
    assert commands(compare)[0].startswith("urepa.compare ids=['track_a+baseline/seed0',")
    assert [s.after for s in (manifest, shards, verify, train, evaluate)] == [None, manifest, shards, verify, train]
    assert evaluate.each
    assert compare.after_any == [manifest, shards, verify, train, evaluate]
    assert [s.gpus for s in (manifest, shards, verify, train, evaluate, compare)] == [1, 1, 0, 8, 1, 0]


@pytest.mark.slow
def test_arms_over_captioned_photographs_share_images_and_latents() -> None:
    """Their classes are counted from the images; the track's own settings have no number."""
    given = ["+experiment=urepa_sdxl", "data.images=/photos", "data.num_classes=1"]
    runs = composed("baseline", "lora_64", "urepa_tae_sdxl", rest=given, seeds=(0,))
    made = [commands(s) for s in stages(runs) if s.name == "preprocess"]
    track = "urepa.preprocess data=sdxl_captions teacher=dinov2_g_unpooled data.images='/photos'"
    first = f"{track} data.num_classes=1"
    tae = f"{track} data.tokens='dino_tokens_tae_lmdb' data.num_classes=1 data.teacher_sees='tae_decoded'"
    assert made[0] == [f"{first} stage=manifest"]
    assert made[1] == [
        f"{first} shard={i}/2 stage={stage}" for i in (0, 1) for stage in ("images", "latents", "tokens", "text")
    ]
    later = [command for stage in made[2:] for command in stage]
    assert all(command.startswith(tae) for command in later)
    assert [command.rpartition("stage=")[2] for command in later] == ["manifest", *2 * ["tokens", "text"]]


@pytest.mark.slow
def test_outputs_of_online_encoders_are_not_cached_before(compose: Callable[..., Any]) -> None:
    """Nor are prompts of a track whose backbones are conditioned on class ids."""
    sit = ["+experiment=repa_cifar10", "data.root=/data"]
    for more, expected in (
        ([], ["images", "latents", "tokens"]),
        (["data.online_latents=true"], ["images", "tokens"]),
        (["data.online_latents=true", "data.online_teacher=true"], ["images"]),
    ):
        manifest, shards, verify, *_ = stages(composed("baseline", "lambda_0", rest=[*sit, *more], seeds=(0,)))
        assert [c.rpartition("stage=")[2] for c in commands(manifest)] == ["manifest"]
        assert [c.rpartition("stage=")[2] for c in commands(shards)] == 2 * expected
        assert all(key.replace("=true", "=true ") in commands(verify)[0] for key in more)


def test_a_small_track_is_made_by_one_command() -> None:
    made, verify, train, _evaluate, _compare = stages(composed("baseline", rest=[], gpus=1), gpus=1)
    assert commands(made) == ["urepa.preprocess data=digits teacher=efficientnet_lite0 stage=all"]
    assert (verify.after, train.after) == (made, verify)


def test_only_trainings_take_several_nodes() -> None:
    settings = settings_of(["cluster=slurm"])
    found = stages_of(composed("baseline", rest=[], gpus=4), settings, 2, nodes=2)
    assert {stage.name: stage.nodes for stage in found} == {
        "preprocess": 1,
        "verify": 1,
        "train": 2,
        "evaluate": 1,
        "compare": 1,
    }


@pytest.mark.slow
def test_caches_in_one_folder_are_made_one_after_the_other() -> None:
    """The larger track first; for the others only what is missing."""
    runs = composed("samples_100k", "baseline", "teacher_224", seeds=(0,))
    first, shards, tokens_list, tokens, smaller = (s for s in stages(runs) if s.name == "preprocess")
    assert "data=track_a teacher" in commands(first)[0]
    assert {c.rpartition("stage=")[2] for c in commands(shards)} == {"images", "latents", "tokens"}
    assert [c.rpartition("stage=")[2] for c in commands(tokens_list)] == ["manifest"]
    assert all("data=track_a_224 teacher=dinov2_l_224" in c and c.endswith("stage=tokens") for c in commands(tokens))
    assert [c.split()[1] for c in commands(smaller)] == ["data=track_a_minus"]
    assert [c.rpartition("stage=")[2] for c in commands(smaller)] == ["manifest"]
    assert [s.after for s in (first, shards, tokens_list, tokens, smaller)] == [
        None,
        first,
        shards,
        tokens_list,
        tokens,
    ]


def test_caches_are_made_with_the_settings_that_they_have(compose: Callable[..., Any]) -> None:
    """Not with the dropout of conditions, whose parts have names that no key on a command line can have."""
    photographs = ["+experiment=nanodit_smoke", "data.images=/it's", "data.num_classes=1"]
    run = compose_run([*(quote_argument(o) for o in photographs), "data.dropout={text+image:1.0,image:0.0}"], 1)
    assert run.config["data"]["dropout"] == {"text+image": 1.0, "image": 0.0, "text": 0.05}
    assert not [argument for argument in run.caches if "dropout" in argument]
    caches = compose(*run.caches, root="preprocess")
    assert caches["data"] == run.config["data"] | {"dropout": caches["data"]["dropout"]}
    assert caches["teacher"] == run.config["teacher"]


def test_caches_of_several_teachers_have_the_parts_of_the_run(compose: Callable[..., Any]) -> None:
    """Parts of a part are chosen, and a setting of one is changed."""
    teachers = ["teacher=several", "+teacher@teacher.teachers.a=dinov2_s_112"]
    teachers += ["+teacher@teacher.teachers.b=efficientnet_lite0", "teacher.teachers.a.unit_length=false"]
    run = compose_run(teachers, 1)
    assert run.caches[-1] == "teacher.teachers.a.unit_length=false"
    assert compose(*run.caches, root="preprocess")["teacher"] == run.config["teacher"]


@pytest.mark.slow
def test_arms_with_equal_caches_share_them() -> None:
    assert len({run.caches for run in composed("baseline", "no_cfg_dropout", "lora_32", "lambda_0")}) == 1


@pytest.mark.slow
def test_stages_by_choice(capsys: pytest.CaptureFixture[str]) -> None:
    runs = composed("baseline")
    assert [s.name for s in stages(runs, "stages=[train]")] == ["train"]
    assert stages(runs, "stages=[train]")[0].after is None
    assert "evaluate" not in [s.name for s in stages(runs)]
    assert "evaluate: left out, the runs have evaluation=none" in capsys.readouterr().out
    with pytest.raises(UserError, match="stages: there is no fit; choose of preprocess, verify"):
        stages(runs, "stages=[train,fit]")


@pytest.mark.slow
def test_all_arms_that_are_for_the_backbone(capsys: pytest.CaptureFixture[str]) -> None:
    every = runs_of(None, [0, 3], [], 1)
    arms = [run.overrides[0].partition("=")[2] for run in every[::2]]
    assert {"baseline", "lambda_0", "lambda_08"} <= set(arms)
    assert "lora_16" not in arms
    assert (
        "left out: +ablation=lora_16 is for the backbone sd15 or sdxl or kolors, not for tiny_unet"
        in capsys.readouterr().out
    )
    with pytest.raises(UserError, match="for the backbone sd15"):
        composed("lora_16", rest=[])


@pytest.mark.slow
def test_a_run_is_what_its_command_composes() -> None:
    """Each arm is composed once for all seeds."""
    (baseline,) = composed("baseline", rest=[], gpus=1, seeds=(0,))
    _, seventh = composed("lambda_0", rest=["trainer.max_steps=9"], gpus=1, seeds=(0, 7))
    assert seventh == compose_run(["trainer.max_steps=9", "+ablation=lambda_0", "seed=7"], 1)
    assert seventh.name.endswith("/seed7")
    assert baseline.name == "quickstart+baseline/seed0"


@pytest.mark.fast(1)
@pytest.mark.parametrize("scripts", [False, True])
def test_a_dry_run_is_short_and_whole_in_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], scripts: bool
) -> None:
    every = stages(composed("baseline", "lora_16"))
    capsys.readouterr()
    folder = tmp_path / "deep" / "scripts"
    LocalChain({"at_once": 2, "gpus": [], "folder": str(tmp_path / "jobs")}, tmp_path).show(
        every, folder if scripts else None
    )
    said = capsys.readouterr().out
    assert "\n3: train, 4 jobs, 2 at a time\n      python -m urepa.train +experiment=track_a data.root=/data" in said
    assert len(said.splitlines()) == len(every) + sum(len(stage.jobs[0].commands) for stage in every)
    if not scripts:
        assert not list(tmp_path.iterdir())
        return
    assert sorted(p.name for p in folder.iterdir()) == [f"{n}_{stage.name}.txt" for n, stage in enumerate(every)]
    assert (folder / "3_train.txt").read_text() == "".join(f"python -m {c}\n" for c in commands(every[3]))


@pytest.mark.slow
def test_the_arms_of_a_sit_even_if_other_arms_do_not_compose(capsys: pytest.CaptureFixture[str]) -> None:
    """full_data replaces this track by one without data.limit."""
    overrides = ["+experiment=repa_cifar10_pixels", "data.limit=100"]
    runs = runs_of(None, (0, 1), overrides, 1)
    of_all = {"baseline", "cfg_dropout_20", "lambda_0", "lambda_08", "no_cfg_dropout", "quarter_diffusion"}
    sits = {"sit_irepa", "sit_irepa_head", "sit_spatial_norm"}
    arms = {parse_overrides(run.overrides)["ablation"] for run in runs}
    assert of_all | sits <= arms
    assert not {"full_data", "lora_16", "sit_stop_50k", "upsample_before"} & arms
    said = capsys.readouterr().out
    assert "left out: +ablation=full_data does not fit this command: Could not override 'data.limit'" in said
    assert "left out: schedule.stop_step=50000 has no effect in a run of 2000 steps" in said
    *groups, compare = stages(runs, gpus=1)
    made, verify, train, _evaluate = groups[:4]
    preprocess = "urepa.preprocess data=cifar10_pixels teacher=efficientnet_lite0_256 data.limit=100"
    assert commands(made) == [f"{preprocess} stage=all"]
    others = {command for (command,) in map(commands, groups[4::4])}  # of arms with other tokens
    online = "urepa.preprocess data=cifar10_pixels teacher=dinov2_s_112 data.limit=100 data.online_teacher=true"
    assert others == {
        f"{online} stage=all",
        f"{preprocess} teacher.unit_length=false stage=all",
        f"{preprocess} teacher.whiten=true stage=all",
    }
    assert sum(len(each.jobs) for each in groups[2::4]) == len(runs) == 2 * len(arms)
    assert (verify.after, train.after, len(compare.jobs)) == (made, verify, 1)
    with pytest.raises(HydraException, match=r"Could not override 'data\.limit'"):
        runs_of(["full_data"], (0,), overrides, 1)


def test_arguments_are_the_study_s_or_its_runs() -> None:
    own, rest = split_arguments(
        ["+experiment=track_a", "arms=a,b", "seeds=0,1", "cluster.gpus=2", "data.root=/d", "arms=null"]
    )
    assert own == ["arms=[a,b]", "seeds=[0,1]", "cluster.gpus=2", "arms=null"]
    assert rest == ["+experiment=track_a", "data.root=/d"]
    with pytest.raises(UserError, match="seeds=0,1,2"):
        split_arguments(["seed=0"])
    with pytest.raises(UserError, match="arms=a,b,c"):
        split_arguments(["+ablation=lora_16"])


@pytest.mark.slow
def test_hours_are_those_of_the_plan() -> None:
    """Of each arm, once for each seed."""
    runs = composed("baseline", "lambda_0", rest=[], gpus=1)
    with initialize_config_dir(CONF, version_base="1.3"):
        parts = to_plain(compose_hydra("plan"))
    one = plan(parts, Device(**parts["device"]), None)
    assert one.floor_hours is not None
    said = training_hours(runs, plan_configs(runs, None))
    assert said == f"training, GPU-hours on H200: {hours(4 * one.floor_hours)} at least, expected: pending"


def test_the_batch_divides_over_the_gpus() -> None:
    with pytest.raises(UserError, match="does not divide into 7 processes"):
        composed("baseline", gpus=7)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ("arms=baseline trainer.maxsteps=3", "there is no key 'trainer.maxsteps' (did you mean 'trainer.max_steps'?)"),
        ("arms=nothing", "ablation has no option 'nothing'"),
        ("arms=baseline clusterr=slurm", "there is no key 'clusterr'"),
        ("arms=baseline cluster=slum", "cluster has no option 'slum'; choose one of: local, slurm"),
        ("arms=baseline seeds=[]", "there is no arm to run"),
        ("arms=baseline shard=3", "there is no key 'shard'"),
    ],
)
def test_mistakes_of_a_study_are_reported_in_one_line(tmp_path: Path, arguments: str, error: str) -> None:
    command = [sys.executable, "-m", "launchers.ablation_grid", *arguments.split(), "dry_run=true"]
    environment = {k: v for k, v in os.environ.items() if k != "HYDRA_FULL_ERROR"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {error}")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert not list(tmp_path.iterdir())


def test_every_command_of_a_study_gets_the_folder_of_configs() -> None:
    every = stages(composed("baseline"), "evaluate=digits")
    waits = [stage.after for stage in every]
    add_arguments(every, ["--config-dir", "/mine"])
    assert all(command.endswith(" --config-dir /mine") for stage in every for command in commands(stage))
    assert [stage.after for stage in every] == waits
