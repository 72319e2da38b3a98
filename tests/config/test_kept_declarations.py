"""A declaration is built once for equal settings, and each caller has its own."""

from __future__ import annotations

from typing import Any

import pytest

from urepa.config import declared
from urepa.config.declared import declaration_of
from urepa.core.errors import UserError


def settings(compose: Any) -> dict[str, Any]:
    part: dict[str, Any] = compose()["optimizer"]
    return part


def test_a_changed_declaration_changes_no_other(compose: Any) -> None:
    part = settings(compose)
    first = declaration_of(part)
    built = declared._built.cache_info().misses
    first.lr["head"] = 5.0
    second = declaration_of(part)
    assert declared._built.cache_info().misses == built
    assert (second.lr, type(second)) == (part["lr"], type(first))
    assert second.lr != first.lr


def test_changed_settings_give_another_declaration(compose: Any) -> None:
    part = settings(compose)
    declaration_of(part)
    part["lr"]["head"] = 5.0
    assert declaration_of(part).lr["head"] == 5.0


def test_settings_that_do_not_fit_are_refused_each_time(compose: Any) -> None:
    part = settings(compose) | {"odd": 1}
    for _ in range(2):
        with pytest.raises(UserError, match="odd"):
            declaration_of(part)


def test_a_users_own_part_is_built_anew() -> None:
    assert not declared._is_urepas({"_target_": "mine.Teacher"})
    assert not declared._is_urepas({"_target_": "urepa.a.B", "teachers": {"own": {"_target_": "mine.Teacher"}}})
    assert not declared._is_urepas({"_target_": "urepa.a.B", "several": [{"_target_": "urepa_own.Teacher"}]})
    assert declared._is_urepas({"_target_": "urepa.a.B", "teachers": {"a": {"_target_": "urepa.a.C"}}, "grid": [2]})
