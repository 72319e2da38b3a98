"""Stored configs as data: what a stranger's config.yaml says is read and checked, and nothing in it runs.

A `_target_` is one of the parts that `urepa.config` declares, its settings have the types of its schema, and nothing is
interpolated, so that no variable of the environment is read. All of that is checked before anything is imported.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from urepa.config import KINDS
from urepa.config.doors import Train
from urepa.errors import UserError
from urepa.nested import flatten
from urepa.upgrades import upgrade

LARGEST_FILE = 2**20  # bytes; a run's config has some 5,000
DEEPEST = 20  # levels of mappings and lists; a run's config has 5
PLAIN = (str, int, float, bool, type(None))
BELOW = ("teacher", "images", "encoder")  # kinds of the parts that parts hold
HOLDERS = ("Any", "dict[str, Any]")  # annotations of the fields that hold them


def read_config(file: Path) -> dict[str, Any]:
    """The config of a run, as this version composes one. UserError where it is damaged, another program's, of a later
    version, or asks for more than a run's config may."""
    config = read_plain(file)
    if not isinstance(config, dict) or not all(isinstance(config.get(kind), dict) for kind in ("backbone", "data")):
        raise UserError(f"{file} is not the config of a run of urepa; give the folder of one")
    try:
        return checked(upgrade(config))
    except UserError as error:
        raise UserError(f"{file}: {error}") from None


def read_plain(file: Path) -> Any:
    """What a YAML file holds: mappings with text as keys, lists, text, numbers, true, false and null. UserError for
    anything else, and for what is no whole YAML."""
    try:
        if not file.is_file() or file.stat().st_size > LARGEST_FILE:
            raise UserError(f"{file} is no file of at most {LARGEST_FILE} bytes, as a config is")
        text = file.read_text(encoding="utf-8")
        _check_events(text)
        return _plain(yaml.load(text, Loader=yaml.CSafeLoader), "")
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    except (yaml.YAMLError, ValueError) as error:  # of UnicodeDecodeError too
        reason = " ".join(str(error).split())
        raise UserError(f"{file} is damaged, or no YAML: {reason}") from error


def _check_events(text: str) -> None:
    """Before anything is built of it: no alias, which may stand for any amount of data, and no depth to overflow on."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise UserError("it has an alias (*name), which no stored config has")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise UserError(f"it is nested in more than {DEEPEST} levels, which no stored config is")


def _plain(value: Any, key: str) -> Any:
    """The same value; UserError where it is not plain, or would be interpolated."""
    if isinstance(value, dict):
        for name in value:
            if not isinstance(name, str) or "${" in name:
                raise UserError(
                    f"has the key {name!r} below {key or 'its root'}; keys of a stored config are plain text"
                )
        return {name: _plain(one, f"{key}.{name}" if key else name) for name, one in value.items()}
    if isinstance(value, list):
        return [_plain(one, key) for one in value]
    if not isinstance(value, PLAIN):
        raise UserError(f"{key} is a {type(value).__name__}; a stored config has text, numbers, true, false and null")
    if isinstance(value, str) and "${" in value:
        raise UserError(f"{key} holds an interpolation ({value}), which a stored config never does: it is not read")
    return value


# --- the declared parts ---------------------------------------------------------------------------------------


def checked(config: dict[str, Any]) -> dict[str, Any]:
    """A run's config in the types of the schema; a key that it lacks has the schema's default, if there is one.
    UserError for a `_target_` or a key that is not declared, a value of another type and a key that is missing."""
    whole = _typed(Train, config, "")
    del whole["arm"]  # of the command, not of the run
    for kind in (name for name in KINDS if name in whole and name != "evaluation"):
        whole[kind] = _part(whole[kind], (kind,), kind)
    asked = whole["evaluation"]
    whole["evaluation"] = {name: _part(asked[name], ("evaluation",), f"evaluation.{name}") for name in asked}
    if missing := sorted(key for key, value in flatten(whole).items() if value == "???"):
        raise UserError(f"{', '.join(missing)} is missing: this is not the whole config of a run")
    return whole


def _part(config: Any, kinds: tuple[str, ...], key: str) -> dict[str, Any]:
    """One part and those it holds, in the types of its schema."""
    schema = _declared(config, kinds, key)
    held = {f.name for f in fields(schema) if f.type in HOLDERS and config.get(f.name) is not None}
    typed = _typed(schema, config, key)
    for name in held:
        value, place = typed[name], f"{key}.{name}"
        if "_target_" in value:
            typed[name] = _part(value, BELOW, place)
        elif isinstance(value, dict):
            typed[name] = {one: _part(value[one], BELOW, f"{place}.{one}") for one in value}
        else:
            raise UserError(f"{place} is {value!r}; it holds a part, or several by name")
    return typed


def _declared(config: Any, kinds: tuple[str, ...], key: str) -> type:
    """The schema of a part's `_target_`."""
    if not isinstance(config, dict):
        raise UserError(f"{key} is {config!r}; it holds a part, with a _target_")
    known = {_target(schema): schema for kind in kinds for schema in KINDS[kind].values()}
    target = config.get("_target_")
    if not isinstance(target, str) or target not in known:
        raise UserError(
            f"{key} names {target!r} as its _target_, which is no {' or '.join(kinds)} of urepa: nothing of it is "
            "imported. Open only configs that urepa stored"
        )
    return known[target]


def _target(schema: type) -> str:
    return str(next(f.default for f in fields(schema) if f.name == "_target_"))


def _typed(schema: type, config: dict[str, Any], key: str) -> dict[str, Any]:
    """A mapping in the types of a schema, enums as their names."""
    _refuse_specials(config, schema, key)
    try:
        typed = OmegaConf.to_container(OmegaConf.merge(OmegaConf.structured(schema), config), enum_to_str=True)
    except OmegaConfBaseException as error:
        place = ".".join(part for part in (key, str(error.full_key or "")) if part)
        raise UserError(f"{place}: {str(error).splitlines()[0]}") from None
    assert isinstance(typed, dict)
    return {str(name): value for name, value in typed.items()}


def _refuse_specials(config: dict[str, Any], schema: type, key: str) -> None:
    """Keys with an underscore are Hydra's instructions. A part has those of its schema, a mapping of numbers none, and
    a list no mappings at all."""
    own = {f.name: f.default for f in fields(schema)}
    held = {f.name for f in fields(schema) if f.type in HOLDERS}
    for name, value in config.items():
        found = [name] if name.startswith("_") and (name not in own or value != own[name]) else []
        found += [] if name in held and isinstance(value, dict) else list(_specials(value, name))
        if found:
            place = f"{key}.{found[0]}" if key else found[0]
            raise UserError(f"{place} is an instruction to Hydra, and none of a run's config: it is not followed")


def _specials(value: Any, key: str) -> Iterator[str]:
    """Dotted keys with an underscore, at any depth, and lists with mappings in them."""
    if isinstance(value, list):
        for one in value:
            yield from [key] if isinstance(one, dict) else _specials(one, key)
    elif isinstance(value, dict):
        for name, one in value.items():
            yield from [f"{key}.{name}"] if name.startswith("_") else _specials(one, f"{key}.{name}")
