"""Parts are built from plain configs, and their mistakes come through as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from urepa.assembly import make
from urepa.errors import UserError

Compose = Callable[..., dict[str, Any]]


def test_parts_get_plain_lists_and_dicts(compose: Compose) -> None:
    loss = make(compose()["loss"])
    assert type(loss.taps) is dict
    assert type(make(compose()["optimizer"]).betas) is list


@pytest.mark.parametrize(
    ("part", "override", "words"),
    [
        ("loss", "loss.lambda_max=-1", "^loss.lambda_max and"),
        ("data", "data.image_size=33", "^data.image_size=33 is not a multiple"),
        ("teacher", "teacher.grid=[9,9]", "^teacher.grid="),
    ],
)
def test_a_constructors_user_error_is_not_wrapped(compose: Compose, part: str, override: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make(compose(override)[part])
