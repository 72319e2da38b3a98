"""The transformer of a declared family: from a hub id, from a local folder, or with random weights."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from urepa.core.errors import UserError
from urepa.core.files import read_json
from urepa.models.backbones.backbone_sizes import RANDOM
from urepa.models.backbones.diffusers_transformer_net import DiffusersTransformer
from urepa.models.diffusers_weights import ModuleKind, module_folder, read_folder, read_hub
from urepa.models.published_transformer import PublishedTransformer

FOLDER = "transformer"  # the transformer's folder in a pipeline's folder


def kind_of(declared: PublishedTransformer) -> ModuleKind:
    """The module of a pipeline that is read."""

    def check(config: Mapping[str, Any], where: str) -> None:
        check_config(declared, config, where)

    return ModuleKind(declared.network, FOLDER, "transformer", check)


def check_config(declared: PublishedTransformer, config: Mapping[str, Any], where: str) -> None:
    """Raises UserError if a config.json is that of another class, or differs from the settings."""
    declared.check_class(config, where)
    known = inspect.signature(ModuleKind(declared.network, "", "", lambda *_: None).cls.__init__).parameters
    for name, here in declared.variant().items():
        there = config.get(name, known[name].default)
        if (tuple(there) if isinstance(there, list) else there) != here:
            shown = f"[{','.join(map(str, there))}]" if isinstance(there, list | tuple) else there
            shown = "null" if shown is None else shown
            raise UserError(
                f"{where} has {name}={shown} in its config.json, and backbone.{name}={here} here; give "
                f"backbone.{name}={shown}, or the backbone that these weights are of"
            )


def load_transformer(
    declared: PublishedTransformer, dtype: torch.dtype, channels: int, widths: Mapping[str, int]
) -> Any:
    """diffusers' module. Weights that are read are held in `dtype`, except those of norms; random weights are drawn in
    fp32. Raises UserError if the files are not those of such a transformer.

    Args:
        channels, widths: of x0 and of the condition's parts by name, which random weights take.
    """
    kind = kind_of(declared)
    if declared.weights == RANDOM:
        return kind.cls(**declared.architecture() | declared.of_data(channels, widths))
    if Path(declared.weights).is_dir():
        return read_folder(module_folder(Path(declared.weights), FOLDER), kind, dtype)
    return read_hub(declared.weights, kind, dtype)


def transformer_without_weights(declared: PublishedTransformer, channels: int, widths: Mapping[str, int]) -> Any:
    """The same with random weights, also on the meta device; no weights are read or fetched. The architecture is that
    of a local folder's config.json, or else of the settings."""
    kind, architecture = kind_of(declared), declared.architecture()
    if declared.weights == RANDOM:
        architecture |= declared.of_data(channels, widths)
    if Path(declared.weights).is_dir():
        architecture = read_json(module_folder(Path(declared.weights), FOLDER) / "config.json")
        kind.check(architecture, declared.weights)
    return kind.cls.from_config(architecture)


def network_of(
    declared: PublishedTransformer, transformer: Any, latent_shape: tuple[int, int, int], widths: Mapping[str, int]
) -> DiffusersTransformer:
    """The backbone around diffusers' module. `widths` has the widths of the condition's parts by name. Raises UserError
    if these or the latent channels differ from those of the module."""
    adapter, config = declared.adapter(), transformer.config
    if adapter.channels_of(config) != latent_shape[0]:
        raise UserError(
            f"the transformer of {declared.weights} takes {adapter.channels_of(config)} latent channels; the track has "
            f"{latent_shape[0]}"
        )
    declared.compare_widths(config, widths)
    if declared.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    return adapter(transformer, **declared.network_settings())
