"""The files that a run reads are checked when it begins, and not when it continues."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from urepa.core.errors import UserError
from urepa.data.lists.split_sizes import DIGITS, check_shares
from urepa.data.sources.image_sources import digits
from urepa.runs.summary import FILE as SUMMARY
from urepa.training.checks.inputs import check_run_inputs

Compose = Callable[..., dict[str, Any]]
FOLDER = ("data=folder", "data.num_classes=3", "data.images=nowhere")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (FOLDER, "data.images=nowhere is not a folder here"),
        ((*FOLDER, "data.build_on_first_use=false"), "there is no cache at data/folder/folder-"),
        (
            ("warm_start.checkpoint=nowhere",),
            "nowhere has no valid checkpoint; give the folder of a run that has saved one",
        ),
        (("data.limit=5", "trainer.batch_size=6"), "trainer.batch_size=6 is more than the 5 training samples"),
        (("+experiment=track_a",), "there is no cache at data/track_a/train_200k.csv; make it with"),
    ],
)
def test_a_new_run_checks_its_files(compose: Compose, overrides: tuple[str, ...], message: str) -> None:
    config, folder = compose(*overrides), Path("run")
    with pytest.raises(UserError, match=message):
        check_run_inputs(config, folder)


@pytest.mark.parametrize("mark", ["checkpoints/step_00000002/state.json", SUMMARY])
def test_a_run_that_goes_on_or_is_finished_may_have_lost_its_images(compose: Compose, mark: str) -> None:
    file = Path("run") / mark
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    check_run_inputs(compose(*FOLDER, "warm_start.checkpoint=nowhere"), Path("run"))


def test_finished_caches_need_no_images(compose: Compose) -> None:
    config = compose(*FOLDER)
    with pytest.raises(UserError, match="there is no cache at") as error:
        check_run_inputs(config | {"data": config["data"] | {"build_on_first_use": False}}, Path("run"))
    latents = Path(str(error.value).removeprefix("there is no cache at ").partition(";")[0])
    latents.mkdir(parents=True)
    (latents / "manifest.json").write_text("{}")
    check_run_inputs(config, Path("run"))


def test_the_digits_are_as_many_as_scikit_learn_has() -> None:
    found = Counter(row.class_id for row in digits("scikit-learn"))
    assert dict(enumerate(DIGITS)) == found


def test_shares_refer_to_the_remaining_images() -> None:
    """Of 6 and 5 images without a test split, 2 and 1 go to test, then 1 and 1 to val; 3 each are left."""
    pools, held_out = [(6, 0), (5, 0)], {"val": 2, "test": 3}
    check_shares(pools, held_out, limit=6)
    with pytest.raises(UserError, match="data.limit=.* asks for 4 images of one class; there are 3 left"):
        check_shares(pools, held_out, limit=7)
    with pytest.raises(UserError, match="data.validation_images=.* asks for 5 images of one class; there are 4 left"):
        check_shares(pools, {"val": 10, "test": 3}, limit=None)
    check_shares([(6, 3), (5, 3)], {"val": 10, "test": 6}, limit=None)
    with pytest.raises(UserError, match="data.test_images=.* asks for 4 images of one class; there are 3 left"):
        check_shares([(6, 3), (5, 3)], {"val": 2, "test": 7}, limit=None)
