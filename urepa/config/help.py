"""The text of a command's --help: what it does, its usage, its own keys, the groups of a run, examples.

Keys, defaults and ranges come from the command's schema and from the composed config, options from conf/.
"""

from __future__ import annotations

import contextlib
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from omegaconf import DictConfig, OmegaConf

from urepa.config.command_schemas import Train
from urepa.config.commands import COMMANDS, OF_RUN, Command
from urepa.config.launcher_schemas import launchers_of
from urepa.config.part_schemas import Trainer
from urepa.config.parts import parts_of
from urepa.core.declared_keys import LARGEST, TINY, Key, keys_of
from urepa.core.nested_dicts import flatten

HELP = {"--help", "-h"}
WIDEST = 100  # columns
COLUMNS = (24, 20)  # largest widths of a key and its default; wider ones have a line of their own
NARROWEST = 20  # smallest width of a meaning
MANY = 10**6  # upper limits from this value on are not shown
LISTED = 5  # number of entries shown of a default
ADDED = {"experiment": "a file that sets several groups and keys", "ablation": "an arm: one named change of it"}
ALL_KEYS = (
    ("--cfg job", "shows every key with its value; with groups and keys beside it, what they compose"),
    ("--info defaults-tree", "shows which file each group comes from"),
    ("--hydra-help", "Hydra's own options"),
    ("HYDRA_FULL_ERROR=1", "before the command: a mistake ends in a traceback, not in one line"),
)


@contextlib.contextmanager
def without_groups() -> Iterator[None]:
    """Skips Hydra's formatting of groups, which our template does not use: Hydra formats all groups for every --help
    and copies the whole config repository for each of them, 2 of 2.7 s. --hydra-help has its own template and shows
    them."""
    formatted = Hydra.format_config_groups
    Hydra.format_config_groups = lambda *_, **__: ""  # type: ignore[method-assign]
    try:
        yield
    finally:
        Hydra.format_config_groups = formatted  # type: ignore[method-assign]


@dataclass(frozen=True)
class KeyRow:
    """A row of a table: a key, its default and its meaning, followed by the options of a group."""

    key: str
    default: str
    meaning: str
    options: tuple[str, ...] = ()


def help_text(root: str, config: DictConfig) -> str:
    """The help of a root of conf/ for the composed config."""
    width = min(WIDEST, shutil.get_terminal_size((WIDEST, 24)).columns)
    command = COMMANDS[root]
    own, of_run = rows_of(command, config)
    lines = textwrap.wrap(f"{command.module}: {command.title}", width, subsequent_indent="  ")
    lines += ["", "Usage", *(line for usage in command.usage for line in command_lines(command, usage, width))]
    for title, rows in (own | of_run).items():
        lines += ["", title, *table(rows, width)]
    lines += ["", "Examples"]
    for arguments, what in command.examples:
        lines += [*textwrap.wrap(f"# {what}", width, **_indentation(2)), *command_lines(command, arguments, width)]
    for note in command.notes:
        lines += ["", *textwrap.wrap(note, width, break_on_hyphens=False)]
    if command.module.startswith("urepa."):
        lines += ["", "More", *table([KeyRow(option, "", what) for option, what in ALL_KEYS], width)]
    return "\n".join(lines)


def command_lines(command: Command, arguments: str, width: int) -> list[str]:
    """A command wrapped to `width` with the shell's line continuations."""
    lines = textwrap.wrap(
        f"python -m {command.module} {arguments}",
        width - 2,
        initial_indent="  ",
        subsequent_indent=" " * 6,
        break_on_hyphens=False,
        break_long_words=False,
    )
    return [f"{line} \\" for line in lines[:-1]] + lines[-1:]


def _indentation(columns: int) -> dict[str, Any]:
    return {"initial_indent": " " * columns, "subsequent_indent": " " * columns, "break_on_hyphens": False}


def rows_of(command: Command, config: DictConfig) -> tuple[dict[str, list[KeyRow]], dict[str, list[KeyRow]]]:
    """Rows by heading: those of the command's own keys, and those of the keys that it accepts to compose a run."""
    values = _values(config)
    inherited = _inherited_keys(command.schema)
    own: dict[str, list[KeyRow]] = {}
    groups: list[KeyRow] = []
    run: list[KeyRow] = []
    title = command.heading
    chosen: dict[str, list[KeyRow]] = {}
    for key in keys_of(command.schema):
        title = title if key.section is None else f"Keys: {key.section}"
        options = _options(key.name) if key.is_part else ()
        of_run = key.name in inherited or (command.schema is Train and options != ())
        if of_run and command.takes is not None and key.name not in command.takes:
            continue
        row = KeyRow(key.name, format_value(values.get(key.name)), _meaning(key), options)
        (own.setdefault(title, []) if not of_run else groups if options else run).append(row)
        if key.name not in inherited and options:
            chosen |= _rows_of_chosen(key.name, config)
    chosen |= _rows_of_chosen("hydra/launcher", config)
    if groups:
        plus = [name for name in OF_RUN if command.takes is None or name in command.takes]
        groups = [
            KeyRow(f"+{name}", format_value(values.get(name)), ADDED[name], _options(name)) for name in plus
        ] + groups
    tables = {
        "Keys of the run (KEY=VALUE)": run,
        f"Groups (GROUP=NAME{'' if chosen else '; urepa.train --help shows their keys'})": groups,
    }
    return own, {title: rows for title, rows in (tables | chosen).items() if rows}


def _rows_of_chosen(group: str, config: DictConfig) -> dict[str, list[KeyRow]]:
    """Rows by heading: the keys of a group's chosen option, and of its nested parts."""
    content: Any = OmegaConf.to_container(config, resolve=False, enum_to_str=True, throw_on_missing=False)
    here: list[tuple[str, dict[str, Any], type]] = list(parts_of(content.get(group), group))
    if group == "trainer":
        here = [(group, content[group], Trainer)]
    of_parts = [(part, list(keys_of(schema, f"{place}."))) for place, part, schema in here]
    of_launchers = [(part, keys) for place, part, keys in launchers_of(content) if place == group.replace("/", ".")]
    rows = [
        KeyRow(key.name, format_value(part.get(key.name.rpartition(".")[2])), _meaning(key))
        for part, keys in (*of_parts, *of_launchers)
        for key in keys
        if not key.is_part
    ]
    return {f"Keys of {group}={format_value(_values(config).get(group))}": rows}


def _inherited_keys(schema: type) -> set[str]:
    """The keys that a command inherits unchanged from `train`."""
    if schema is Train or not issubclass(schema, Train):
        return set()
    of_train = {one.name: one.metadata for one in fields(Train)}
    return {one.name for one in fields(schema) if of_train.get(one.name) == one.metadata}


def _values(config: DictConfig) -> dict[str, Any]:
    """Values by dotted key; for a group, the chosen option."""
    content: Any = OmegaConf.to_container(config, resolve=False, enum_to_str=True, throw_on_missing=False)
    choices: Mapping[str, Any] = content.pop("hydra", {}).get("runtime", {}).get("choices", {})
    return flatten(content) | content | dict(choices)


def _options(group: str) -> tuple[str, ...]:
    """The options of a group, including those of the user's config folders."""
    loader = GlobalHydra.instance().config_loader()
    assert isinstance(loader, ConfigLoaderImpl)  # Hydra's get_group_options parses the command line for each group
    return tuple(sorted(loader.repository.get_group_options(group, ObjectType.CONFIG)))


def _meaning(key: Key) -> str:
    """The meaning of a key, with its choices or its range if it has one."""
    if key.choices:
        return f"{key.meaning} ({', '.join(key.choices)})"
    text = "" if key.range is None else range_text(*key.range)
    return f"{key.meaning} ({text})" if text else key.meaning


def range_text(low: float, high: float) -> str:
    """A range in words, such as "0 to 1"; "" if any number is allowed."""
    if low == -LARGEST:
        return ""
    least = "more than 0" if low == TINY else f"{low:g}"
    if high >= MANY:
        return least if low == TINY else f"{least} or more"
    most = "less than 1" if high == 1 - TINY else f"{high:,}"
    return f"{least}, {most}" if low == TINY or high == 1 - TINY else f"{least} to {most}"


def format_value(value: Any) -> str:
    """A value as written on the command line; for a long list the first entry and the length."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ",".join(f"{name}:{format_value(one)}" for name, one in value.items()) + "}"
    if isinstance(value, list):
        return f"[{','.join(map(str, value))}]" if len(value) <= LISTED else f"[{value[0]},...] ({len(value)})"
    return str(value)


def table(rows: Sequence[KeyRow], width: int) -> list[str]:
    """Rows in columns, with the meanings wrapped to the width of their column."""
    cells = [(row.key, row.default) for row in rows]
    widths = [min(most, max(map(len, column))) for most, column in zip(COLUMNS, zip(*cells, strict=True), strict=True)]
    left = 2 + sum(w + 2 for w in widths if w)
    lines = []
    for row, pair in zip(rows, cells, strict=True):
        head = "  " + "".join(f"{cell:<{w}}  " for cell, w in zip(pair, widths, strict=True) if w)
        meaning = textwrap.wrap(row.meaning, max(NARROWEST, width - left), break_on_hyphens=False)
        if len(head) > left:  # a key or a default is wider than its column
            lines.append(head.rstrip())
            head = " " * left
        lines += [f"{head}{meaning[0]}", *(f"{'':<{left}}{rest}" for rest in meaning[1:])]
        lines += textwrap.wrap(", ".join(row.options), width, **_indentation(6))
    return lines
