"""Reads stored configs as data. A config.yaml may be untrusted: it is checked, and nothing in it is executed.

Each `_target_` must be a part that `urepa.config` declares, the settings must have the types of its schema, and there
must be no interpolation, so that no environment variable is read. All of this is checked before anything is imported.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from urepa.config.command_schemas import Train
from urepa.config.parts import KINDS, target_of
from urepa.core.errors import UserError
from urepa.core.nested_dicts import flatten
from urepa.runs.upgrades import upgrade

LARGEST_FILE = 2**20  # bytes; a typical config has about 5,000
DEEPEST = 20  # levels of mappings and lists; a typical config has 5
PLAIN = (str, int, float, bool, type(None))
BELOW = ("teacher", "images", "encoder", "schedule", "text_encoder")  # kinds of the parts that are nested in parts


def read_config(file: Path) -> dict[str, Any]:
    """The config of a run, in this version's form. Raises UserError if the file is damaged, of another program or of a
    later version, or contains anything that a run's config must not contain."""
    config = read_plain(file)
    if not isinstance(config, dict) or not all(isinstance(config.get(kind), dict) for kind in ("backbone", "data")):
        raise UserError(f"{file} is not the config of a run of urepa; give the folder of one")
    try:
        return check_config(upgrade(config))
    except UserError as error:
        raise UserError(f"{file}: {error}") from None


def read_plain(file: Path) -> Any:
    """The content of a YAML file: mappings with text keys, lists, text, numbers, true, false and null. Raises UserError
    for any other content, and for incomplete YAML."""
    try:
        if not file.is_file() or file.stat().st_size > LARGEST_FILE:
            raise UserError(f"{file} is not a file of at most {LARGEST_FILE} bytes, as a config must be")
        text = file.read_text(encoding="utf-8")
        _check_events(text)
        return _plain(yaml.load(text, Loader=yaml.CSafeLoader), "")
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError includes UnicodeDecodeError
        reason = " ".join(str(error).split())
        raise UserError(f"{file} is damaged, or not YAML: {reason}") from error


def _check_events(text: str) -> None:
    """Checks for aliases, which can expand to any amount of data, and for deep nesting, before objects are built."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise UserError("it has an alias (*name), which no stored config has")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise UserError(f"it is nested in more than {DEEPEST} levels, which no stored config is")


def _plain(value: Any, key: str) -> Any:
    """The same value. Raises UserError if it is not plain data or contains an interpolation."""
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


def check_config(config: dict[str, Any]) -> dict[str, Any]:
    """A run's config in the types of the schema, with the schema's defaults for missing keys. Raises UserError for an
    undeclared `_target_` or key, a value of another type, and a missing key without a default."""
    check_parts(config)
    whole = _to_schema_types(Train, config, "")
    del whole["arm"]  # belongs to the command, not to the run
    for key, kinds, part in _parts(whole):
        _put(whole, key, _to_schema_types(_declared_schema(part, kinds, key), part, key))
    if missing := sorted(key for key, value in flatten(whole).items() if value == "???"):
        raise UserError(f"{', '.join(missing)} is missing: this is not the whole config of a run")
    return whole


def check_parts(config: dict[str, Any]) -> None:
    """Raises UserError for a `_target_` that is not declared at its place, and for any other instruction to Hydra."""
    _refuse_specials(config, Train, "")
    for key, kinds, part in _parts(config):
        _refuse_specials(part, _declared_schema(part, kinds, key), key)


def _parts(config: dict[str, Any]) -> Iterator[tuple[str, tuple[str, ...], dict[str, Any]]]:
    """The place of each part, the kinds that it may have, and the part itself, followed by its nested parts."""
    for kind in (kind for kind in KINDS if kind in config and kind != "evaluation"):
        yield from _walk_parts(config[kind], (kind,), kind)
    asked = config.get("evaluation")
    for name, part in asked.items() if isinstance(asked, dict) else ():
        yield from _walk_parts(part, ("evaluation",), f"evaluation.{name}")


def _walk_parts(part: Any, kinds: tuple[str, ...], key: str) -> Iterator[tuple[str, tuple[str, ...], dict[str, Any]]]:
    schema = _declared_schema(part, kinds, key)
    below: tuple[str, ...] = kinds if kinds == ("tracking",) else BELOW  # tracking=several has trackers
    below += ("evaluation",) if hasattr(schema, "nested") else ()  # an evaluation that runs others
    yield key, kinds, part
    for name in (f.name for f in fields(schema) if _holds_parts(f) and part.get(f.name) is not None):
        value, place = part[name], f"{key}.{name}"
        if isinstance(value, dict) and "_target_" not in value:
            for one in value:
                yield from _walk_parts(value[one], below, f"{place}.{one}")
        else:
            yield from _walk_parts(value, below, place)


def _holds_parts(one: Field[Any]) -> bool:
    """Whether a field of a schema is declared to hold a part, or several by name."""
    return bool(one.metadata.get("is_part"))


def _put(config: dict[str, Any], key: str, value: Any) -> None:
    """Sets the value of an existing dotted key."""
    *groups, name = key.split(".")
    for group in groups:
        config = config[group]
    config[name] = value


def _declared_schema(config: Any, kinds: tuple[str, ...], key: str) -> type:
    """The schema of a part's `_target_`."""
    if not isinstance(config, dict):
        raise UserError(f"{key} is {config!r}; it holds a part, with a _target_")
    known = {target_of(schema): schema for kind in kinds for schema in KINDS[kind].values()}
    target = config.get("_target_")
    if not isinstance(target, str) or target not in known:
        raise UserError(
            f"{key} names {target!r} as its _target_, which is not a declared {' or '.join(kinds)} of urepa: it is not "
            "imported; open only configs that urepa stored, and for a part of your own package give --config-dir "
            "FOLDER, whose files name it"
        )
    return known[target]


def _to_schema_types(schema: type, config: dict[str, Any], key: str) -> dict[str, Any]:
    """Converts a mapping to the types of a schema, enums as their names."""
    try:
        typed = OmegaConf.to_container(OmegaConf.merge(OmegaConf.structured(schema), config), enum_to_str=True)
    except OmegaConfBaseException as error:
        place = ".".join(part for part in (key, str(error.full_key or "")) if part)
        raise UserError(f"{place}: {str(error).splitlines()[0]}") from None
    assert isinstance(typed, dict)
    return {str(name): value for name, value in typed.items()}


def _refuse_specials(config: dict[str, Any], schema: type, key: str) -> None:
    """Raises UserError for undeclared keys with an underscore, which are instructions to Hydra. A part may have those
    of its schema, a mapping of numbers none, and a list may contain no mappings."""
    own = {f.name: f.default for f in fields(schema)}
    held = {f.name for f in fields(schema) if _holds_parts(f)}
    for name, value in config.items():
        found = [name] if name.startswith("_") and (name not in own or value != own[name]) else []
        found += [] if name in held and isinstance(value, dict) else list(_specials(value, name))
        if found:
            place = f"{key}.{found[0]}" if key else found[0]
            raise UserError(f"{place} is an instruction to Hydra, and none of a run's config: it is not followed")


def _specials(value: Any, key: str) -> Iterator[str]:
    """Dotted keys with an underscore, at any depth, and lists that contain mappings."""
    if isinstance(value, list):
        for one in value:
            yield from [key] if isinstance(one, dict) else _specials(one, key)
    elif isinstance(value, dict):
        for name, one in value.items():
            yield from [f"{key}.{name}"] if name.startswith("_") else _specials(one, f"{key}.{name}")
