"""Speeds up Hydra's composition by a factor of two with the same result, which saves 0.1 s per command and job.

Functions of Hydra and OmegaConf are replaced by equivalent ones. They are private, so pyproject.toml bounds the
versions, and a test composes every command and experiment of conf/ with and without the replacements.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from typing import Any

import yaml
from hydra._internal import config_loader_impl, config_repository, defaults_list
from hydra.core.default_element import GroupDefault, InputDefault
from omegaconf import _utils

from urepa.config import repeated_composition

PARTS = (  # (holder, name) of the replaced functions
    (defaults_list, "_create_interpolation_map"),
    (config_repository.CachingConfigRepository, "__init__"),
    (_utils, "get_yaml_loader"),
    (config_repository.CachingConfigRepository, "load_config"),
    (config_loader_impl.ConfigLoaderImpl, "_compose_config_from_defaults_list"),
)
interpolation_map, _, yaml_loader, *_ = ORIGINALS = tuple(getattr(holder, name) for holder, name in PARTS)


def install() -> None:
    """Replaces the functions for this process. Repeated calls have no further effect."""
    ours = (
        _interpolation_map,
        _caching_repository,
        _yaml_loader,
        repeated_composition.load_config,
        repeated_composition.compose_from_defaults,
    )
    for (holder, name), new in zip(PARTS, ours, strict=True):
        setattr(holder, name, new)


def _interpolation_map(overrides: Any, defaults: Sequence[InputDefault], self_added: bool) -> Any:
    """Hydra builds this mapping of all choices for each file, but reads it only if the file's defaults list has an
    interpolation. Here it is built only then."""
    read = any(
        default.is_interpolation()
        for default in defaults
        if not default.is_self() and not (isinstance(default, GroupDefault) and default.is_options())
    )
    return interpolation_map(overrides, defaults, self_added) if read else None


def _caching_repository(self: Any, delegate: Any) -> None:
    """Hydra makes a deep copy of the repository with all schemas, so that `initialize_sources` does not change the
    caller's. That method assigns a new list of sources and does not change the old one, so a shallow copy is enough."""
    self.delegate = copy.copy(delegate)
    self.cache = {}
    self.stamps = {}  # of `repeated_composition`


@cache
def _yaml_loader() -> Any:
    """A single loader class on libyaml's parser, with OmegaConf's resolvers, constructors and check for duplicate keys;
    OmegaConf makes a new class for each file. Text that libyaml refuses is parsed again with PyYAML's own parser, so
    that error messages stay the same."""
    in_python = yaml_loader()

    class Loader(yaml.cyaml.CParser, in_python):  # type: ignore[misc, valid-type]
        def __init__(self, stream: Any) -> None:
            self.source = stream  # text, or a file
            self.start = stream.tell() if hasattr(stream, "seek") and stream.seekable() else None
            yaml.cyaml.CParser.__init__(self, stream)
            yaml.constructor.SafeConstructor.__init__(self)
            yaml.resolver.Resolver.__init__(self)

        def get_single_data(self) -> Any:
            try:
                return super().get_single_data()
            except yaml.YAMLError:
                if not isinstance(self.source, str) and self.start is None:
                    raise  # a pipe: it cannot be read again
            if self.start is not None:
                self.source.seek(self.start)
            return in_python(self.source).get_single_data()

    return Loader
