"""diffusers' UNet2DConditionModel of a family: of a hub id, of a local folder, or with random weights on request."""

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
    """The U-Net (UNet2DConditionModel).

    Args:
        weights: a hub id, a local diffusers folder (of the pipeline or of the U-Net), or "random".
        family: of `urepa.models.unet_families`.
        dtype: of the weights that are read, but for those of norms. Random ones are drawn in fp32.

    Raises UserError where the files are not those of such a U-Net.
    """
    from diffusers import UNet2DConditionModel

    if weights == RANDOM:
        return UNet2DConditionModel(**FAMILIES[family].architecture)
    if Path(weights).is_dir():
        return unet_from_folder(unet_folder(Path(weights)), family, dtype)
    return unet_from_hub(weights, family, dtype)


def unet_without_weights(weights: str, family: str) -> Any:
    """The same at random weights, also on the meta device: none are read or fetched. The architecture is that of a
    local folder's config.json, else the published one."""
    from diffusers import UNet2DConditionModel

    architecture: Any = FAMILIES[family].architecture
    if Path(weights).is_dir():
        architecture = read_json(unet_folder(Path(weights)) / "config.json")
        check_unet_config(architecture, family, weights)
    return UNet2DConditionModel.from_config(dict(architecture))


def check_unet_channels(unet: Any, channels: int, weights: str) -> None:
    """Raises UserError if a track's x0 has other channels."""
    if unet.config.in_channels != channels:
        raise UserError(
            f"the U-Net of {weights} takes {unet.config.in_channels} latent channels; the track has {channels}"
        )


def unet_folder(folder: Path) -> Path:
    """The folder with the U-Net's config.json, given that one or the pipeline's."""
    for candidate in (folder / "unet", folder):
        if (candidate / "config.json").is_file():
            return candidate
    raise UserError(f"backbone.weights={folder} has neither unet/config.json nor config.json: not a diffusers folder")


def unet_from_folder(folder: Path, family: str, dtype: torch.dtype = torch.float32) -> Any:
    """The U-Net of its own folder."""
    config = read_json(folder / "config.json")
    check_unet_config(config, family, str(folder))
    return _read(folder, config, _weight_files(folder), dtype)


def unet_from_hub(weights: str, family: str, dtype: torch.dtype = torch.float32) -> Any:
    """The U-Net of a pipeline on the hub. Its config is read before its weights are fetched."""
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    name, revision = resolve(weights)
    try:
        config = read_json(Path(hf_hub_download(name, "unet/config.json", revision=revision)))
        check_unet_config(config, family, name)
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=HUB_FILES)) / "unet"
    except UserError:
        raise
    except (HfHubHTTPError, OSError, ValueError) as error:  # the hub's own errors are of these kinds
        raise UserError(
            f"backbone.weights={name} is no local folder and could not be fetched from the hub "
            f"({download_failure(error, weights)}); give backbone.weights=FOLDER"
        ) from error
    if not any(folder.glob(f"{WEIGHTS}*.safetensors")):  # what an interrupted download leaves
        raise UserError(
            f"backbone.weights={name}: unet/{WEIGHTS}.safetensors is not in the hub's local cache, or not in the "
            f"repository; {PREFETCH}, or give backbone.weights=FOLDER"
        )
    return _read(folder, config, _weight_files(folder), dtype)


def _weight_files(folder: Path) -> list[Path]:
    """The file of the weights, or its shards. Raises UserError if they are not all there, or are no safetensors."""
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
    """The module of a config with the weights of files, one after the other in `dtype`: the whole is never held in
    another. Raises UserError for weights that are missing, odd or of other shapes."""
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
                for name in tensors.keys():  # noqa: SIM118 (it is no mapping)
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
    assert not list(unet.buffers()), "no U-Net of these families has buffers, which files would lack"
    return unet.eval()


def _put(unet: nn.Module, name: str, value: Tensor, dtype: torch.dtype) -> None:
    """Sets a parameter by its dotted name, to a copy in memory of its own.

    In a safetensors file weights begin at multiples of 8 bytes, in memory of their own at multiples of 64, and CPU
    kernels round by where weights lie (see `urepa.models.weight_files.own_memory`).
    """
    owner, _, leaf = name.rpartition(".")
    module = unet.get_submodule(owner)
    own = torch.float32 if type(module) in IN_THEIR_INPUTS_TYPE else dtype  # as hold_frozen_in_bf16 has norms
    setattr(module, leaf, nn.Parameter(value.to(own, copy=True)))
