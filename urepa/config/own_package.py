"""Parts of the user's own package, which files in a folder given by --config-dir name as `_target_`.

Before Hydra composes, the module of each such name is imported, and the dataclass found there is registered as a
declaration of its kind (`urepa.config.parts`). Ranges, --help, checks and stored configs then treat it like urepa's own
parts. When Hydra loads a file that names it, its settings get the types of the declaration.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from importlib import import_module
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from urepa.config import conf_options
from urepa.config.mistyped_keys import declaration_message
from urepa.config.parts import KINDS, PROTOCOLS, SCHEMAS
from urepa.core.abstract import check_complete
from urepa.core.declared_keys import keys_of
from urepa.core.errors import UserError, did_you_mean

ROOT = "urepa"
NAMED = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
OF_RUNS = ("experiment", "ablation")  # groups whose files start at the root of a config
# the kind of the parts below a key of a part
HELD = {
    **{"teacher": "teacher", "teachers": "teacher", "encoder": "encoder", "encoders": "encoder", "images": "images"},
    "terms": "term",
}


def take_folder(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Loads the folder that --config-dir gives to a command of launchers/, whose flags Hydra does not parse. Returns
    the flag with the absolute path for the commands of the jobs ([] without the flag), and the other arguments. Raises
    UserError if no folder follows the flag."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config-dir", "-cd")
    try:
        given, others = parser.parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        raise UserError("--config-dir needs a folder: --config-dir FOLDER") from error
    if given.config_dir is None:
        return [], others
    folder = Path(given.config_dir).absolute()
    load([folder])
    return ["--config-dir", str(folder)], others


def given_folders(arguments: Sequence[str]) -> list[Path]:
    """The config folders of a command line, instead of conf/ and in addition to it, as absolute paths in order of
    priority. Hydra resolves a relative --config-path from the command's own file."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-path", "-cp")
    parser.add_argument("--config-dir", "-cd")
    given, _ = parser.parse_known_args(list(arguments))
    instead = [] if given.config_path is None else [Path(conf_options.CONF).parent / ROOT / given.config_path]
    return [*instead, *([] if given.config_dir is None else [Path(given.config_dir).absolute()])]


def load(folders: Sequence[Path]) -> None:
    """Registers the parts that the files of these folders name, and adds the folders to the search path after conf/.

    Raises UserError for a missing folder, a package that cannot be imported, and a class that is not a declaration.
    """
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder}: give one with the layout of conf/, --config-dir FOLDER")
        for file, kind, target in _named_parts(folder):
            _declare(kind, target, file)
        if folder not in conf_options.ADDED:
            conf_options.ADDED.append(folder)
    if not _is_typing():
        ConfigLoaderImpl._load_single_config = _load_with_types  # type: ignore[method-assign]


# --- what the files name --------------------------------------------------------------------------------------


def _named_parts(folder: Path) -> Iterator[tuple[Path, str, str]]:
    """The file, kind and `_target_` of each part of a package other than urepa."""
    for group in (*KINDS, *OF_RUNS):
        for file in sorted((folder / group).rglob("*.yaml")):
            text = file.read_text(encoding="utf-8", errors="replace")
            if "_target_" not in text:
                continue
            try:
                content = yaml.load(text, Loader=yaml.CSafeLoader)
            except yaml.YAMLError:
                continue  # Hydra reports the error when the file is chosen
            for place, target in _targets(content, () if group in OF_RUNS else (group,)):
                if place and place[0] in KINDS and target.partition(".")[0] != ROOT:
                    yield file, _kind_at(place), target


def _targets(value: Any, place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    """The place and value of each `_target_`; nested parts come before the part that contains them."""
    if isinstance(value, dict):
        for name, one in value.items():
            yield from _targets(one, (*place, str(name)))
        if isinstance(value.get("_target_"), str):
            yield place, value["_target_"]


def _kind_at(place: tuple[str, ...]) -> str:
    """The kind of the part at this place: an evaluation is below its name, another part below its group."""
    below = place[2:] if place[0] == "evaluation" else place[1:]
    return next((HELD[name] for name in reversed(below) if name in HELD), place[0])


# --- declarations ---------------------------------------------------------------------------------------------


def _declare(kind: str, target: str, file: Path) -> None:
    """Adds the class to the declared parts of its kind."""
    cls = SCHEMAS.get(target) or _import(target, file)
    if target not in KINDS[kind]:
        _check_declaration(cls, kind, target)
        KINDS[kind][target] = SCHEMAS[target] = cls


def _import(target: str, file: Path) -> Any:
    """The object that a dotted name refers to. Raises UserError if it cannot be imported."""
    module, _, name = target.rpartition(".")
    root = target.partition(".")[0]
    if not module:
        raise UserError(f"{file} names '{target}' as a _target_; give PACKAGE.MODULE.CLASS")
    try:
        found = import_module(module)
    except ModuleNotFoundError as error:
        if error.name == root:
            raise UserError(
                f"{file} names {target}, and there is no package '{root}' to import: install it, or add the folder "
                "that has it to PYTHONPATH"
            ) from None
        raise UserError(f"{file} names {target}, which cannot be imported: {error}") from error
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{file} names {target}, which cannot be imported: {reason}") from error
    if not hasattr(found, name):
        raise UserError(f"{file} names {target}, and {module} has no {name}{did_you_mean(name, vars(found))}")
    return getattr(found, name)


def _check_declaration(cls: Any, kind: str, target: str) -> None:
    """Raises UserError if a class is not a declaration of this kind."""
    named = next((f.default for f in fields(cls) if f.name == "_target_"), None) if is_dataclass(cls) else None
    if named != target or cls.__dataclass_params__.frozen:
        raise UserError(
            f"{target} is not a declaration: it must be a dataclass, not frozen, whose fields are its settings, the "
            f'first of them _target_: str = "{target}"'
        )
    check_complete(cls)
    protocol = PROTOCOLS.get(kind)
    needed = set() if protocol is None else _members(protocol)
    there = {f.name for f in fields(cls)}.union(*map(vars, cls.__mro__))  # not all fields are class attributes
    if missing := sorted(needed - there):
        assert protocol is not None
        place = f"{protocol.__module__}.{protocol.__name__}"
        raise UserError(f"{target} is no {kind}, as it has no {' and no '.join(missing)}; {place} says what it needs")
    if protocol is not None and (odd := _asked_in_vain(cls, protocol)):
        place = f"{protocol.__module__}.{protocol.__name__}"
        raise UserError(f"{target}.build asks for {', '.join(odd)}, which {place}.build is not given; see there")
    try:
        OmegaConf.structured(cls)
        list(keys_of(cls))
    except (OmegaConfBaseException, AssertionError, NameError, TypeError) as error:
        raise UserError(f"{target} cannot have settings of a config: {str(error).splitlines()[0]}") from error


def _asked_in_vain(cls: Any, protocol: Any) -> list[str]:
    """Required arguments of a declaration's `build` that its callers do not pass."""
    given = signature(protocol.build).parameters if hasattr(protocol, "build") else {}
    asked = signature(cls.build).parameters.values() if given else ()
    return [p.name for p in asked if p.name not in given and p.default is p.empty and p.kind in NAMED]


def _members(protocol: type) -> set[str]:
    """The members that a class needs to satisfy a protocol."""
    return {name for name in {*vars(protocol), *protocol.__annotations__} if name[0] != "_" or name == "__call__"}


# --- composition ----------------------------------------------------------------------------------------------

_load_single_config = ConfigLoaderImpl._load_single_config


def _is_typing() -> bool:
    return ConfigLoaderImpl._load_single_config is _load_with_types


def _load_with_types(self: ConfigLoaderImpl, default: Any, repo: Any) -> Any:
    """Hydra's `_load_single_config`, in which parts of the user's package get the types of their declarations; those of
    conf/ get them by starting from /schema. Raises UserError for settings that a declaration does not accept."""
    result = _load_single_config(self, default, repo)
    if default.config_path.partition("/")[0] not in KINDS or not isinstance(result.config, DictConfig):
        return result
    content = OmegaConf.to_container(result.config, resolve=False, throw_on_missing=False)
    own = [(place, SCHEMAS[target]) for place, target in _targets(content, ()) if _is_own(target)]
    if not own:
        return result
    result = copy.copy(result)
    result.config = copy.deepcopy(result.config)  # the loaded object stays in Hydra's cache
    for place, schema in own:
        key = ".".join(place)
        node = OmegaConf.select(result.config, key) if place else result.config
        try:
            typed = OmegaConf.merge(OmegaConf.structured(schema), node)
        except OmegaConfBaseException as error:
            known = [f.name for f in fields(schema)]
            raise UserError(f"{default.config_path}.yaml: {declaration_message(key, error, known)}") from None
        if place:
            OmegaConf.update(result.config, key, typed, merge=False)
        else:
            result.config = typed
    return result


def _is_own(target: str) -> bool:
    return target in SCHEMAS and target.partition(".")[0] != ROOT
