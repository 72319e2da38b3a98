"""Composed settings as overrides of a command line, in the syntax of Hydra's grammar."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString

from urepa.config.command_line import parse_override, quote_argument


def value_text(value: Any) -> str:
    """Plain data in the syntax of Hydra's grammar: text is quoted, lists and mappings are written out."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(value_text, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{value_text(one)}' for key, one in value.items())}}}"
    return QuotedString(value, Quote.single).with_quotes() if isinstance(value, str) else str(value)


def override_of(key: str, value: Any, sign: str = "") -> str:
    """KEY=VALUE for a dotted key. A key that Hydra's grammar cannot read becomes an entry of the mapping that contains
    it: `data.dropout={text+image:0.1}`.

    Args:
        sign: `+` for a key that the composed config does not have.
    """
    text = value_text(value)
    while parse_override(f"{sign}{key}={text}") is None:
        key, dot, name = key.rpartition(".")
        assert dot, f"no part of the key {key}.{name} can be read"
        text, sign = f"{{{name}:{text}}}", sign and "++"  # the mapping may be there without the entry
    return f"{sign}{key}={text}"


def overrides_between(there: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """The overrides that turn one flat config into another."""
    dropped = [f"~{key}" for key in there if key not in wanted]
    added = [override_of(key, value, "+") for key, value in wanted.items() if key not in there]
    return dropped + added + [override_of(k, v) for k, v in wanted.items() if k in there and there[k] != v]


def as_typed(argument: str) -> str:
    """KEY=VALUE of one run as it can be typed: with quotes around a value only if a command would not read it as one
    value without them."""
    key, _, value = argument.partition("=")
    read = parse_override(quote_argument(argument))
    is_value = read is not None and not read.is_sweep_override()
    return argument if is_value else f"{key}={value_text(value)}"
