"""Reads modules of diffusers' pipelines from a hub id or a local folder, tensor by tensor and directly in the data
type in which they are held."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from urepa.core.errors import UserError
from urepa.core.files import read_json
from urepa.core.hub_names import PREFETCH, download_failure, resolve
from urepa.models.diffusers_files import WEIGHTS, hub_files
from urepa.models.speed_switches import IN_THEIR_INPUTS_TYPE

MAPPED = 32 * 2**20  # bytes of a file that are read before it is opened again


@dataclass(frozen=True)
class ModuleKind:
    """The module of a pipeline that is read.

    Args:
        class_name: the class in diffusers.
        folder: the module's folder in the pipeline's folder.
        noun: the module's name in errors ("U-Net").
        check: raises UserError if a config.json is not that of an accepted module. Its second argument names the place
            for the error.
    """

    class_name: str
    folder: str
    noun: str
    check: Callable[[Mapping[str, Any], str], None]

    @property
    def cls(self) -> Any:
        """The class in diffusers."""
        import diffusers

        return getattr(diffusers, self.class_name)


def module_folder(folder: Path, name: str) -> Path:
    """The folder with the module's config.json: the given folder, or the subfolder of this name of a pipeline's folder.
    Raises UserError if neither has one."""
    for candidate in (folder / name, folder):
        if (candidate / "config.json").is_file():
            return candidate
    raise UserError(f"backbone.weights={folder} has neither {name}/config.json nor config.json: not a diffusers folder")


def read_folder(folder: Path, kind: ModuleKind, dtype: torch.dtype) -> Any:
    """The module from its own folder, with weights in `dtype`."""
    config = read_json(folder / "config.json")
    kind.check(config, str(folder))
    return _read(folder, kind, config, _weight_files(folder), dtype)


def read_hub(weights: str, kind: ModuleKind, dtype: torch.dtype) -> Any:
    """The module of a pipeline on the hub. Its config is checked before its weights are fetched."""
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    name, revision = resolve(weights)
    try:
        config = read_json(Path(hf_hub_download(name, f"{kind.folder}/config.json", revision=revision)))
        kind.check(config, name)
        patterns = hub_files(kind.folder)
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns)) / kind.folder
    except UserError:
        raise
    except (HfHubHTTPError, OSError, ValueError) as error:  # the hub's errors are of these types
        raise UserError(
            f"backbone.weights={name} is no local folder and could not be fetched from the hub "
            f"({download_failure(error, weights)}); give backbone.weights=FOLDER"
        ) from error
    if not any(folder.glob(f"{WEIGHTS}*.safetensors")):  # after an interrupted download
        raise UserError(
            f"backbone.weights={name}: {kind.folder}/{WEIGHTS}.safetensors is not in the hub's local cache, or not in "
            f"the repository; {PREFETCH}, or give backbone.weights=FOLDER"
        )
    return _read(folder, kind, config, _weight_files(folder), dtype)


def _weight_files(folder: Path) -> list[Path]:
    """The file of weights, or its shards. Raises UserError if some are missing or they are not safetensors."""
    index = folder / f"{WEIGHTS}.safetensors.index.json"
    if index.is_file():
        shards = sorted(set(read_json(index)["weight_map"].values()))
        missing = [name for name in shards if not (folder / name).is_file()]
        if missing:
            raise UserError(f"{folder} lacks {len(missing)} of its {len(shards)} shards ({missing[0]}); copy it again")
        return [folder / name for name in shards]
    file = folder / f"{WEIGHTS}.safetensors"
    if file.is_file():
        return [file]
    if (folder / f"{WEIGHTS}.bin").is_file():
        raise UserError(
            f"{folder} holds its weights as a pickle ({WEIGHTS}.bin), which could run code when it is read; "
            "save them with safe_serialization=True"
        )
    raise UserError(f"{folder} has no {WEIGHTS}.safetensors")


def _without_values(kind: ModuleKind, config: dict[str, Any], folder: Path) -> Any:
    """The module with parameters on the meta device. Buffers that it computes from its config, such as tables of
    positions, have values. Raises UserError if no module can be built from the config."""
    from accelerate import init_empty_weights
    from diffusers.models.modeling_utils import no_init_weights

    try:
        with no_init_weights(), init_empty_weights(include_buffers=False):
            return kind.cls.from_config(config)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"{folder} does not load as a {kind.noun}: {str(error).splitlines()[0]}") from error


def _read(folder: Path, kind: ModuleKind, config: dict[str, Any], files: list[Path], dtype: torch.dtype) -> Any:
    """The module of a config with the weights of files. Each tensor is cast to `dtype` as it is read, so that the whole
    module is never held in another type. Raises UserError if weights are missing, superfluous or of another shape."""
    from safetensors import SafetensorError

    module = _without_values(kind, config, folder)
    missing: dict[str, Tensor] = dict(module.state_dict(keep_vars=True))
    odd = []
    try:
        for file in files:
            for name, value in _tensors(file):
                if name not in missing or missing[name].shape != value.shape:
                    odd.append(name)
                    continue
                del missing[name]
                _put(module, name, value, dtype)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{folder} cannot be read ({str(error).splitlines()[0]}); copy it again") from error
    if wrong := [*missing, *(name for name in odd if name not in missing)]:
        raise UserError(
            f"{folder} does not hold a whole {kind.noun}: {len(wrong)} weights are missing or do not fit ({wrong[0]})"
        )
    assert not any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))
    return module.eval()


def _tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a file by name, one after the other.

    What was read of a mapped file stays in memory until the file is closed. It is therefore opened again each time
    `MAPPED` bytes were read; otherwise a file of all weights would need its size twice.
    """
    from safetensors import safe_open

    with safe_open(file, "pt") as tensors:
        names = deque(tensors.keys())
    while names:
        read = 0
        with safe_open(file, "pt") as tensors:
            while names and read < MAPPED:
                name = names.popleft()
                value = tensors.get_tensor(name)
                read += value.nbytes
                yield name, value
        del value  # it holds the mapping


def _put(module: nn.Module, name: str, value: Tensor, dtype: torch.dtype) -> None:
    """Sets a parameter or a buffer, by its dotted name, to a copy in memory of its own.

    Weights begin at multiples of 8 bytes in a safetensors file, and at multiples of 64 in memory of their own. The
    rounding of CPU kernels depends on this alignment (see `urepa.models.weight_files.own_memory`).
    """
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    if leaf in owner._buffers:  # a table, which casts of frozen weights leave as it is
        owner._buffers[leaf] = value.to(torch.float32, copy=True)
        return
    own = torch.float32 if type(owner) in IN_THEIR_INPUTS_TYPE else dtype  # as hold_frozen_in_bf16 has norms
    setattr(owner, leaf, nn.Parameter(value.to(own, copy=True)))
