"""SD-1.5's U-Net from diffusers' own files: a hub id, a local folder, or random weights on request.

Shapes: K prompts (the last is the null prompt), L = 77 text positions, E = 768 text width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from urepa.core.errors import UserError
from urepa.core.files import read_json
from urepa.core.hub_names import download_failure, resolve
from urepa.models.backbones.backbone_sizes import check_prompts
from urepa.models.backbones.unet_net import UNet
from urepa.models.weight_files import own_memory, read_torch

# SD-1.5's unet/config.json, as far as it differs from the defaults of UNet2DConditionModel
ARCHITECTURE: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
POSITIONS = 77  # of a prompt
WEIGHTS = "diffusion_pytorch_model"


def sd15_without_weights(
    weights: str,
    gradient_checkpointing: bool,
    *,
    latent_shape: tuple[int, int, int],
    num_classes: int,
) -> UNet:
    """The same module at random weights and without the prompts' values: neither is read or fetched. The architecture
    is that of a local folder's config.json, else SD-1.5's own."""
    from diffusers import UNet2DConditionModel

    architecture = ARCHITECTURE
    if Path(weights).is_dir():
        architecture = read_json(_unet_folder(Path(weights)) / "config.json")
        _check_config(architecture, weights)
    unet: Any = UNet2DConditionModel.from_config(architecture)
    prompts_KLE = torch.empty(num_classes + 1, POSITIONS, unet.config.cross_attention_dim)
    _check_fit(unet, latent_shape, prompts_KLE, weights)
    if gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return UNet(unet, prompts_KLE)


def sd15(
    weights: str,
    prompts: str,
    gradient_checkpointing: bool,
    *,
    latent_shape: tuple[int, int, int],
    num_classes: int,
) -> UNet:
    """The U-Net and its prompts.

    Args:
        weights: a hub id, a local diffusers folder (of the pipeline or of the U-Net), or "random".
        prompts: the .pt file of text embeddings [K,77,768], K = num_classes + 1.
        gradient_checkpointing: recompute blocks in the backward pass to save memory.

    Raises UserError where the files are not those of an SD-1.5 U-Net.
    """
    from diffusers import UNet2DConditionModel

    prompts_KLE = load_prompts(Path(prompts), num_classes)
    if weights == "random":
        unet: Any = UNet2DConditionModel(**ARCHITECTURE)
    elif Path(weights).is_dir():
        unet = _from_folder(_unet_folder(Path(weights)))
    else:
        unet = _from_hub(weights)
    _check_fit(unet, latent_shape, prompts_KLE, weights)
    if gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return UNet(unet, prompts_KLE)


def load_prompts(path: Path, num_classes: int) -> Tensor:
    """Frozen text embeddings [K,L,E] in fp32; only tensors are unpickled."""
    check_prompts(path)
    prompts = read_torch(path)
    if not isinstance(prompts, Tensor) or prompts.ndim != 3 or len(prompts) != num_classes + 1:
        found = tuple(prompts.shape) if isinstance(prompts, Tensor) else type(prompts).__name__
        raise UserError(f"{path} holds {found}; expected [{num_classes + 1}, positions, width], the null prompt last")
    return prompts.float()


def write_random_prompts(file: Path, num_classes: int) -> None:
    """Random text embeddings in the form of the prompts stage's file."""
    torch.save(torch.randn(num_classes + 1, POSITIONS, ARCHITECTURE["cross_attention_dim"]).half(), file)


def _unet_folder(folder: Path) -> Path:
    """The folder with the U-Net's config.json, given that one or the pipeline's."""
    for candidate in (folder / "unet", folder):
        if (candidate / "config.json").is_file():
            return candidate
    raise UserError(f"backbone.weights={folder} has neither unet/config.json nor config.json: not a diffusers folder")


def _from_folder(folder: Path) -> Any:
    config = read_json(folder / "config.json")
    _check_config(config, str(folder))
    index = folder / f"{WEIGHTS}.safetensors.index.json"
    if index.is_file():
        shards = sorted(set(read_json(index)["weight_map"].values()))
        missing = [name for name in shards if not (folder / name).is_file()]
        if missing:
            raise UserError(f"{folder} lacks {len(missing)} of its {len(shards)} shards ({missing[0]}); copy it again")
    elif not (folder / f"{WEIGHTS}.safetensors").is_file():
        if (folder / f"{WEIGHTS}.bin").is_file():
            raise UserError(
                f"{folder} holds its weights as a pickle ({WEIGHTS}.bin), which could run code when it is read; "
                "save them with safe_serialization=True"
            )
        raise UserError(f"{folder} has no {WEIGHTS}.safetensors")
    try:
        return _load(str(folder), local_files_only=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({str(error).splitlines()[0]}); copy it again") from error


def _from_hub(weights: str) -> Any:
    from diffusers import UNet2DConditionModel

    name, revision = resolve(weights)
    try:
        config = UNet2DConditionModel.load_config(name, subfolder="unet", revision=revision)
        _check_config(dict(config), name)
        return _load(name, subfolder="unet", revision=revision)
    except OSError as error:
        raise UserError(
            f"backbone.weights={name} is no local folder and could not be fetched from the hub "
            f"({download_failure(error, weights)}); "
            "give backbone.weights=FOLDER"
        ) from error


def _load(name: str, **where: Any) -> Any:
    """diffusers' loader, which only warns about weights that are missing: here they are an error."""
    from diffusers import UNet2DConditionModel
    from safetensors import SafetensorError

    try:
        unet, info = UNet2DConditionModel.from_pretrained(
            name, use_safetensors=True, output_loading_info=True, torch_dtype=torch.float32, **where
        )
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise UserError(f"{name} does not load as a U-Net: {str(error).splitlines()[0]}") from error
    odd = [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]
    if odd:
        raise UserError(f"{name} does not hold a whole U-Net: {len(odd)} weights are missing or do not fit ({odd[0]})")
    return own_memory(unet)


def _check_config(config: dict[str, Any], where: str) -> None:
    if config.get("_class_name") != "UNet2DConditionModel":
        raise UserError(f"{where} holds a {config.get('_class_name')}, not a UNet2DConditionModel")
    if config.get("addition_embed_type") is not None:
        raise UserError(
            f"{where} is a U-Net with added conditions ({config['addition_embed_type']}), as SDXL's is; "
            "backbone=sd15 takes SD-1.5's"
        )


def _check_fit(unet: Any, latent_shape: tuple[int, int, int], prompts_KLE: Tensor, weights: str) -> None:
    channels, width = unet.config.in_channels, unet.config.cross_attention_dim
    if channels != latent_shape[0]:
        raise UserError(f"the U-Net of {weights} takes {channels} latent channels; the track has {latent_shape[0]}")
    if width != prompts_KLE.shape[2]:
        raise UserError(f"the U-Net of {weights} takes text of width {width}; the prompts have {prompts_KLE.shape[2]}")
