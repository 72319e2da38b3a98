"""The files of a module in the folder of a diffusers pipeline, without torch."""

from __future__ import annotations

WEIGHTS = "diffusion_pytorch_model"


def hub_files(folder: str) -> list[str]:
    """Patterns of the files of a pipeline's module, without the variants (fp16, non_ema) beside its weights."""
    endings = (".safetensors", "-*.safetensors", ".safetensors.index.json")
    return [f"{folder}/config.json", *(f"{folder}/{WEIGHTS}{ending}" for ending in endings)]
