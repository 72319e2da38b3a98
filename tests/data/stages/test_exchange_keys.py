"""Keys of the stages that read, write and judge shards and tokens, where they have no effect."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from shard_folders import over

from urepa.core.errors import UserError
from urepa.training.checks.inputs import check_preprocess


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["stage=read_shards"], "stage=read_shards needs the folder of the shards: webdataset=FOLDER"),
        (["stage=all", "webdataset=x"], "webdataset=x has no effect with stage=all; it is for read_shards"),
        (["stage=verify", "compared_with=images"], "compared_with=images has no effect with stage=verify"),
        (["stage=read_shards", "webdataset=x", "shard_size=5"], "shard_size=5 has no effect with stage=read_shards"),
        (["stage=diagnose", "shard=0/2"], "stage=diagnose takes the whole track: leave shard out"),
        (["stage=diagnose"], "there is no cache at .*/train.csv"),
        (["stage=statistics"], "there is no cache at .*/train.csv"),
    ],
)
def test_keys_without_an_effect_are_refused(
    compose: Callable[..., Any], tmp_path: Path, given: list[str], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        check_preprocess(compose(*over(tmp_path, tmp_path / "root"), *given, root="preprocess"))


def test_a_small_track_has_no_such_stages(compose: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="data=digits is built without stages"):
        check_preprocess(compose("data=digits", "stage=diagnose", root="preprocess"))
