"""Loads diffusers' UNet2DConditionModel of a family from a hub id or a local folder, or makes one with random
weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from urepa.core.errors import UserError
from urepa.core.files import read_json
from urepa.core.hub_names import PREFETCH, download_failure, resolve
from urepa.models.backbones.backbone_sizes import RANDOM
from urepa.models.speed_switches import IN_THEIR_INPUTS_TYPE
from urepa.models.unet_families import FAMILIES, HUB_FILES, WEIGHTS, check_unet_config


def load_unet(weights: str, family: str, dtype: torch.dtype = torch.float32) -> Any:
    """Loads the U-Net (UNet2DConditionModel).

    Args:
        weights: a hub id, a local diffusers folder (of the pipeline or of the U-Net), or "random".
        family: a key of `urepa.models.unet_families.FAMILIES`.
        dtype: of the weights that are read, except those of norms. Random weights are in fp32.

    Raises UserError if the files are not those of such a U-Net.
    """
    from diffusers import UNet2DConditionModel

    if weights == RANDOM:
        return UNet2DConditionModel(**FAMILIES[family].architecture)
    if Path(weights).is_dir():
        return unet_from_folder(unet_folder(Path(weights)), family, dtype)
    return unet_from_hub(weights, family, dtype)


def unet_without_weights(weights: str, family: str) -> Any:
    """The U-Net with random weights, also on the meta device: no weights are read or fetched. The architecture comes
    from a local folder's config.json; without one it is the published one."""
    from diffusers import UNet2DConditionModel

    architecture: Any = FAMILIES[family].architecture
    if Path(weights).is_dir():
        architecture = read_json(unet_folder(Path(weights)) / "config.json")
        check_unet_config(architecture, family, weights)
    return UNet2DConditionModel.from_config(dict(architecture))


def check_unet_channels(unet: Any, channels: int, weights: str) -> None:
    """Raises UserError if the track's x0 has another number of channels."""
    if unet.config.in_channels != channels:
        raise UserError(
            f"the U-Net of {weights} takes {unet.config.in_channels} latent channels; the track has {channels}"
        )


def unet_folder(folder: Path) -> Path:
    """The folder with the U-Net's config.json; `folder` is this one or the pipeline's."""
    for candidate in (folder / "unet", folder):
        if (candidate / "config.json").is_file():
            return candidate
    raise UserError(f"backbone.weights={folder} has neither unet/config.json nor config.json: not a diffusers folder")


def unet_from_folder(folder: Path, family: str, dtype: torch.dtype = torch.float32) -> Any:
    """Loads the U-Net from its own folder."""
    config = read_json(folder / "config.json")
    check_unet_config(config, family, str(folder))
    return _read(folder, config, _weight_files(folder), dtype)


def unet_from_hub(weights: str, family: str, dtype: torch.dtype = torch.float32) -> Any:
    """Loads the U-Net of a pipeline on the hub. Its config is checked before its weights are fetched."""
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    name, revision = resolve(weights)
    try:
        config = read_json(Path(hf_hub_download(name, "unet/config.json", revision=revision)))
        check_unet_config(config, family, name)
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=HUB_FILES)) / "unet"
    except UserError:
        raise
    except (HfHubHTTPError, OSError, ValueError) as error:  # the hub's own errors are subclasses of these
        raise UserError(
            f"backbone.weights={name} is not a local folder and could not be fetched from the hub "
            f"({download_failure(error, weights)}); give backbone.weights=FOLDER"
        ) from error
    if not any(folder.glob(f"{WEIGHTS}*.safetensors")):  # an interrupted download leaves this state
        raise UserError(
            f"backbone.weights={name}: unet/{WEIGHTS}.safetensors is not in the hub's local cache, or not in the "
            f"repository; {PREFETCH}, or give backbone.weights=FOLDER"
        )
    return _read(folder, config, _weight_files(folder), dtype)


def _weight_files(folder: Path) -> list[Path]:
    """The file of the weights, or its shards. Raises UserError if one is missing, or if they are not safetensors."""
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


def _read(folder: Path, config: dict[str, Any], files: list[Path], dtype: torch.dtype) -> Any:
    """A module with this config and the weights in these files. Each weight is converted to `dtype` on its own, so that
    never all weights are held in another type. Raises UserError for missing or unexpected weights and for other
    shapes."""
    from diffusers import UNet2DConditionModel
    from safetensors import SafetensorError, safe_open

    try:
        with torch.device("meta"):
            unet: Any = UNet2DConditionModel.from_config(config)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"{folder} does not load as a U-Net: {str(error).splitlines()[0]}") from error
    missing, odd = dict(unet.named_parameters()), []
    try:
        for file in files:
            with safe_open(file, "pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                    value = tensors.get_tensor(name)
                    if name not in missing or missing[name].shape != value.shape:
                        odd.append(name)
                        continue
                    del missing[name]
                    _put(unet, name, value, dtype)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{folder} cannot be read ({str(error).splitlines()[0]}); copy it again") from error
    if wrong := [*missing, *(name for name in odd if name not in missing)]:
        raise UserError(
            f"{folder} does not hold a whole U-Net: {len(wrong)} weights are missing or do not fit ({wrong[0]})"
        )
    assert not list(unet.buffers()), "U-Nets of these families have no buffers, which the files would lack"
    return unet.eval()


def _put(unet: nn.Module, name: str, value: Tensor, dtype: torch.dtype) -> None:
    """Sets a parameter, given its dotted name, to a copy in newly allocated memory.

    Weights begin at multiples of 8 bytes in a safetensors file and of 64 bytes in allocated memory, and the rounding
    of CPU kernels depends on this alignment (see `urepa.models.weight_files.own_memory`).
    """
    owner, _, leaf = name.rpartition(".")
    module = unet.get_submodule(owner)
    own = torch.float32 if type(module) in IN_THEIR_INPUTS_TYPE else dtype  # as in hold_frozen_in_bf16
    setattr(module, leaf, nn.Parameter(value.to(own, copy=True)))
