"""Settings as overrides: Hydra reads them as the same keys and values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from urepa.config.command_line import quote_argument
from urepa.config.override_text import as_typed, override_of, overrides_between, value_text
from urepa.core.nested_dicts import flatten

VALUES = (
    *(None, True, 3, -2.5, 1e-05, "a", "", "007", "true", "null", "it's", 'a"b', "a,b", "x=[1]", "ñ", "a\\", "{a:b}"),
    *([], [1, 2], ["it's", None, [True]], {"text+image": 0.1, "b": "x y"}),
)


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_value_is_read_as_it_was(value: Any) -> None:
    read: Any = OverridesParser.create().parse_override(f"some.key={value_text(value)}").value()
    assert getattr(read, "text", read) == value or repr(read) == value_text(value)


def test_keys_that_the_grammar_cannot_read_are_set_in_their_mapping(compose: Callable[..., dict[str, Any]]) -> None:
    assert override_of("data.dropout.text+image", 0.5) == "data.dropout={text+image:0.5}"
    track = ("data=nanodit_photos", "data.images=/x", "data.num_classes=1")
    before, changed = compose(*track), compose(*track, override_of("data.dropout.text+image", 0.5))
    there, here = flatten(before), flatten(changed)
    assert {key: here[key] for key in here if there[key] != here[key]} == {"data.dropout.text+image": 0.5}


def test_the_overrides_between_two_configs_lead_from_one_to_the_other(compose: Callable[..., dict[str, Any]]) -> None:
    track = ["data=nanodit_photos", "data.images=/x", "data.num_classes=1"]
    given = ["data.dropout={text+image:0.5}", "++data.dropout={a+b:0.1}", "~data.dropout.image", "data.name='a b'"]
    there, wanted = ({k: flatten(c)[k] for k in flatten(c)} for c in (compose(*track), compose(*track, *given)))
    found = overrides_between(there, wanted)
    assert sorted(found) == sorted(
        ["~data.dropout.image", "++data.dropout={a+b:0.1}", "data.dropout={text+image:0.5}", "data.name='a b'"]
    )
    assert flatten(compose(*track, *found)) == wanted


@pytest.mark.parametrize(
    ("argument", "typed"),
    [
        ("head.depth=2", "head.depth=2"),
        ("backbone.attention=[false,true]", "backbone.attention=[false,true]"),
        ("data.root=a=b", "data.root=a=b"),  # commands take paths as they are
        ("tracking.experiment_name=a#b", "tracking.experiment_name='a#b'"),
        ("tracking.experiment_name=a,b", "tracking.experiment_name='a,b'"),
    ],
)
def test_quotes_only_where_a_command_needs_them(
    compose: Callable[..., dict[str, Any]], argument: str, typed: str
) -> None:
    assert as_typed(argument) == typed
    key, _, value = argument.partition("=")
    found = flatten(compose(quote_argument(typed)))[key]
    assert str(found).replace(" ", "").lower() == value
