"""Later compositions of a process take from earlier ones what is equal, with the same result: a study composes each of
its arms, and a run with an arm is compared with the same command without it.

Hydra reads all files of a composition anew, and merges them from the first on. Here a file that has not changed is read
once, and merging begins after the files that an earlier composition has merged in the same order. What is kept is
pickled, so that no composition can change another's. `urepa.config.quick_composition` installs these functions.
"""

from __future__ import annotations

import contextlib
import os
import pickle
from itertools import takewhile
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.object_type import ObjectType
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException

from urepa.config.parts import SCHEMAS

MOST = 32  # kept merges, of 20 kB each; the oldest goes first
FILES: dict[tuple[Any, ...], bytes] = {}  # by stamp
MERGED: dict[tuple[Any, ...], bytes] = {}  # by steps
LAST: list[tuple[Any, ...]] = [()]  # the steps of the last composition


def load_config(self: Any, config_path: str) -> Any:
    """In place of CachingConfigRepository.load_config."""
    if config_path not in self.cache:
        stamp = _stamp(self.delegate, config_path)
        if stamp in FILES:
            loaded = pickle.loads(FILES[stamp])
        else:
            loaded = self.delegate.load_config(config_path)
            if stamp is not None:
                _keep(FILES, stamp, loaded)
        self.cache[config_path] = loaded
        self.stamps[config_path] = stamp
    return self.cache[config_path]


def _stamp(repository: Any, config_path: str) -> tuple[Any, ...] | None:
    """What the content of a config depends on: the source where Hydra finds it, and a file's size and time or a
    schema's class. None: unknown, nothing is kept."""
    source = repository._find_object_source(config_path, ObjectType.CONFIG)
    if source is None:
        return None
    kind = source.scheme()  # not by class: Hydra imports the modules of its plugins twice
    where = (kind, source.path, source.provider, config_path)
    if kind == "file":
        file = os.stat(os.path.join(source.path, source._normalize_file_name(config_path)))
        return (*where, file.st_ino, file.st_mtime_ns, file.st_size)
    if kind == "structured":
        schema = OmegaConf.get_type(source.store._load(source._normalize_file_name(config_path)).node)
        return (*where, schema) if schema is not dict else None
    return where if kind == "pkg" else None  # Hydra's own files


def _keep(kept: dict[tuple[Any, ...], bytes], key: tuple[Any, ...], value: Any) -> None:
    """Keeps a value, unless a user's class in it cannot be pickled."""
    with contextlib.suppress(pickle.PicklingError, AttributeError, TypeError):  # pickle raises all three
        kept[key] = pickle.dumps(value)


def compose_from_defaults(self: Any, defaults: list[Any], repo: Any) -> DictConfig:
    """In place of ConfigLoaderImpl._compose_config_from_defaults_list."""
    steps = tuple(_step(default, repo) for default in defaults)
    known = max((kept for kept in MERGED if steps[: len(kept)] == kept), key=len, default=())
    cfg = pickle.loads(MERGED[known]) if known else OmegaConf.create()
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(steps, LAST[0], strict=False)))
    if shared > len(known):  # so will the next ones, perhaps
        _merge(self, cfg, defaults[len(known) : shared], repo)
        known = steps[:shared]
        _keep(MERGED, known, cfg)
        if len(MERGED) > MOST:
            del MERGED[next(iter(MERGED))]
    LAST[0] = steps
    _merge(self, cfg, defaults[len(known) :], repo)
    _strip_defaults(cfg)
    return cfg


def _step(default: Any, repo: Any) -> tuple[Any, ...]:
    """What the merging of this file depends on; unlike any other if that is unknown."""
    repo.load_config(default.config_path)
    stamp = repo.stamps[default.config_path]
    typed = (ConfigLoaderImpl._load_single_config, len(SCHEMAS))  # as `urepa.config.own_package` has them
    return (default.config_path, default.package, default.primary, typed, object() if stamp is None else stamp)


def _merge(loader: Any, cfg: DictConfig, defaults: list[Any], repo: Any) -> None:
    """As Hydra merges them."""
    with flag_override(cfg, "no_deepcopy_set_nodes", True):
        for default in defaults:
            loaded = loader._load_single_config(default=default, repo=repo)
            try:
                cfg.merge_with(loaded.config)
            except OmegaConfBaseException as error:
                raise ConfigCompositionException(  # noqa: B904  as Hydra: `error_message` reads the cause
                    f"In '{default.config_path}': {type(error).__name__} raised while composing config:\n{error}"
                ).with_traceback(error.__traceback__)


def _strip_defaults(cfg: Any) -> None:
    """Removes the defaults lists that Hydra has marked, as it does."""
    if not isinstance(cfg, DictConfig) or cfg._is_missing() or cfg._is_none():
        return
    with flag_override(cfg, ["readonly", "struct"], False):
        if cfg._get_flag("HYDRA_REMOVE_TOP_LEVEL_DEFAULTS"):
            cfg._set_flag("HYDRA_REMOVE_TOP_LEVEL_DEFAULTS", None)
            cfg.pop("defaults", None)
    for _, value in cfg.items_ex(resolve=False):
        _strip_defaults(value)
