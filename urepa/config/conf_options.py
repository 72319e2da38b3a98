"""The contents of conf/ and of the user's config folders: the options of a group, their keys, and composition."""

from __future__ import annotations

from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from urepa.config.parts import SCHEMAS

CONF = str(Path(__file__).resolve().parents[2] / "conf")
# Absolute folders of a user's configs, with the layout of conf/. `own_package.load` adds them; Hydra searches them
# after conf/ (hydra_plugins/urepa_config_folders.py).
ADDED: list[Path] = []


def folders() -> list[Path]:
    """The folders that are searched for config files, in order of priority."""
    return [Path(CONF), *ADDED]


def is_group(name: str) -> bool:
    """Whether there is a group of this name."""
    return any((folder / name).is_dir() for folder in folders())


def options_of(group: str) -> list[str]:
    """The names of a group's options."""
    return sorted({p.stem for folder in folders() for p in (folder / group).glob("*.yaml")})


def options_with(key: str) -> list[str]:
    """The options of a key's group that have the key, according to their files and the files and schemas that these
    include first."""
    group, _, rest = key.partition(".")
    return [option for option in options_of(group) if rest.partition(".")[0] in _names_in(group, option)]


def _names_in(group: str, option: str) -> set[str]:
    file = next(file for folder in folders() if (file := folder / group / f"{option}.yaml").is_file())
    content = yaml.safe_load(file.read_text()) or {}
    names = content.keys() - {"defaults", "_target_"}
    if content.get("_target_") in SCHEMAS:
        names |= {field.name for field in fields(SCHEMAS[content["_target_"]])} - {"_target_"}
    for entry in content.get("defaults", []):
        if isinstance(entry, str) and entry != "_self_":
            names |= _names_in(group, entry)
        for source, name in entry.items() if isinstance(entry, dict) else ():
            if source.startswith("/schema") and source.endswith("@_here_"):
                schema = f"{source.removeprefix('/').removesuffix('@_here_')}/{name}.yaml"
                names |= ConfigStore.instance().load(schema).node.keys()
    return names


def settings_of(group: str) -> dict[str, dict[str, Any]]:
    """The options of a group with the settings that each gives to the quickstart's run: plain data, enums as their
    names, unresolved interpolations. Options that do not fit the quickstart are left out."""
    found = {option: _settings_of(group, option, tuple(folders())) for option in options_of(group)}
    return {option: settings for option, settings in found.items() if settings is not None}


@lru_cache
def _settings_of(group: str, option: str, _folders: tuple[Path, ...]) -> dict[str, Any] | None:
    try:
        chosen = compose_here("train", [f"{group}={option}"])[group]
    except (HydraException, OmegaConfBaseException):
        return None
    plain: Any = OmegaConf.to_container(chosen, enum_to_str=True)
    return plain if isinstance(plain, dict) else None


def compose_here(root: str, overrides: list[str]) -> DictConfig:
    """Composes a root of conf/ with these overrides, inside or outside of a Hydra command."""
    if GlobalHydra.instance().is_initialized():
        return compose(root, overrides)
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose(root, overrides)


def compose_anew(root: str, overrides: list[str]) -> DictConfig:
    """Composes a root of conf/ with these overrides in a new Hydra context."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose(root, overrides)
