"""Valid arguments: paths with any characters are used as typed, and Hydra's own options still work."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import edge
import pytest

from urepa.config.command_line import check_arguments, quote_argument
from urepa.core.errors import UserError
from urepa.runs.run_folder import parse_overrides

ODD = (
    *(
        "a=b",
        "a[b",
        "[ab]",
        "a#b",
        "it's",
        "'a",
        '"a" b',
        "a'",
        "año",
        "数据",
        "a,b",
        "a(b)",
        "{a}",
        "{a:b}",
        "~/a",
        "a\\b",
    ),
    *(
        "a\\",
        " a",
        "a ",
        "1e3",
        "007",
        "true",
        "null x",
        "a:b",
        "$x",
        "100%",
        "a;b",
        "a&b",
        "a@b",
        "-a",
        "+a",
        "a/b=c/d",
    ),
)


@pytest.mark.fast(2)
@pytest.mark.parametrize("value", ODD)
def test_a_path_is_used_as_typed(compose: Callable[..., dict[str, Any]], value: str) -> None:
    arguments = [quote_argument(f"{key}={value}") for key in ("data.root", "data.images", "warm_start.checkpoint")]
    check_arguments(arguments, "train")
    config = compose(*arguments)
    assert [config["data"]["root"], config["data"]["images"], config["warm_start"]["checkpoint"]] == [value] * 3
    assert parse_overrides(arguments) == dict.fromkeys(("data.root", "data.images", "warm_start.checkpoint"), value)
    export = compose(*(quote_argument(f"{key}={value}") for key in ("run", "out")), root="export")
    assert [export["run"], export["out"]] == [value] * 2
    assert compose(quote_argument(f"report={value}"), root="compare")["report"] == value


@pytest.mark.parametrize("value", ["'a#b'", '"a [b]"'])
def test_quotes_of_hydras_own_grammar_stay(compose: Callable[..., dict[str, Any]], value: str) -> None:
    assert quote_argument(f"data.root={value}") == f"data.root={value}"
    assert compose(quote_argument(f"data.root={value}"))["data"]["root"] == value[1:-1]


def test_a_sweep_over_paths_stays_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert quote_argument("data.root=a,b", sweeps=True) == "data.root=a,b"
    (tmp_path / "a,b").mkdir()
    assert quote_argument("data.root=a,b", sweeps=True) == "data.root='a,b'"
    assert quote_argument("data.root=null") == "data.root=null"
    assert quote_argument("data.root=${oc.env:HOME}/x") == "data.root=${oc.env:HOME}/x"


@pytest.mark.parametrize(
    "argument", ["tracking.experiment_name=a#b", "tracking.experiment_name=it's", "+tracking.tags.x=a[b"]
)
def test_the_quotes_that_an_error_message_proposes_work(compose: Callable[..., dict[str, Any]], argument: str) -> None:
    """With the arguments that a shell passes on."""
    with pytest.raises(UserError, match="type ") as raised:
        check_arguments([argument], "train")
    (typed,) = shlex.split(str(raised.value).rpartition(", type ")[2])
    config = compose(typed)["tracking"]
    assert argument.partition("=")[2] in (config["experiment_name"], config["tags"].get("x"))


@pytest.mark.slow
def test_caches_of_images_in_folders_of_odd_names(
    images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The whole way: both paths are used, and training finds the caches that were made."""
    (tmp_path / "it's a=[b], #1 (ñ)").symlink_to(images)
    arguments = ["data=folder", "data.num_classes=3", "data.images=it's a=[b], #1 (ñ)", 'data.root=c="a" #2, {x}']
    arguments += ["data.validation_images=6", "data.test_images=6", "data.image_size=16"]
    arguments += ["teacher.image_size=64", "teacher.grid=[2,2]"]
    done = edge.run(capfd, "urepa.preprocess", arguments, tmp_path)
    assert done.code == 0, done.err
    assert list((tmp_path / 'c="a" #2, {x}').glob("*/latents/manifest.json"))


@pytest.mark.parametrize(
    "typed",
    [
        "+loss.taps.enc_last=1",
        "~loss.taps.mid",
        "+tracking.tags.mood=fine",
        "++seed=1",
        "+loss.teachers.clip=0.5",
        "evaluation=[knn,alignment]",
        "+experiment=cifar10 +ablation=lambda_0",
        "evaluation=dense +teacher@evaluation.dense.teacher=dinov2_b",
        "-m loss=urepa,none seed=0,1 hydra/launcher=local",
        "-m +ablation=glob(lambda*)",
        "hydra.run.dir=elsewhere +hydra.job.env_set.X=1 hydra/launcher=basic",
        "--cfg job seed=1",
        "--config-path mine +experiment=of_my_own head=mine_too +more.of_mine=1",
        "tracking.experiment_name='a b'",
    ],
)
def test_hydras_own_options_still_work(typed: str) -> None:
    check_arguments(shlex.split(typed), "train")


def test_a_prompt_may_have_commas(compose: Callable[..., dict[str, Any]]) -> None:
    prompt = "a temple, lying (left); 3 = 4"
    assert compose(quote_argument(f"prompt={prompt}"), root="generate")["prompt"] == prompt
    assert quote_argument("prompt=a temple") == "prompt=a temple"
    assert quote_argument('negative="a, b"') == 'negative="a, b"'
    assert quote_argument("prompt=a,b", sweeps=True) == "prompt=a,b"
    assert quote_argument(f"prompt={'a' * 300},b", sweeps=True) == f"prompt={'a' * 300},b"
    assert quote_argument("prompt=[a,b]") == "prompt=[a,b]"
