"""What conf/ offers: the options of a group, their keys, and a composition."""

from __future__ import annotations

from pathlib import Path

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

CONF = str(Path(__file__).resolve().parents[2] / "conf")


def options_of(group: str) -> list[str]:
    """What can be chosen of a group in conf/."""
    return sorted(p.stem for p in (Path(CONF) / group).glob("*.yaml"))


def options_with(key: str) -> list[str]:
    """The options of a key's group that have it, by their files and the schemas and files that these name first."""
    group, _, rest = key.partition(".")
    return [option for option in options_of(group) if rest.partition(".")[0] in _names_in(group, option)]


def _names_in(group: str, option: str) -> set[str]:
    content = yaml.safe_load((Path(CONF) / group / f"{option}.yaml").read_text()) or {}
    names = content.keys() - {"defaults", "_target_"}
    for entry in content.get("defaults", []):
        if isinstance(entry, str) and entry != "_self_":
            names |= _names_in(group, entry)
        for source, name in entry.items() if isinstance(entry, dict) else ():
            if source.startswith("/schema") and source.endswith("@_here_"):
                file = f"{source.removeprefix('/').removesuffix('@_here_')}/{name}.yaml"
                names |= ConfigStore.instance().load(file).node.keys()
    return names


def compose_anew(root: str, overrides: list[str]) -> DictConfig:
    """A root of conf/ with these overrides, whatever this process has composed before."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose(root, overrides)
