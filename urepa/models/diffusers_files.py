"""The files of a module in the folder of a diffusers pipeline, without torch."""

from __future__ import annotations

WEIGHTS = "diffusion_pytorch_model"


def hub_files(folder: str) -> list[str]:
    """Patterns of the files of a pipeline's module. They do not match variants of its weights (fp16, non_ema)."""
    endings = (".safetensors", "-*.safetensors", ".safetensors.index.json")
    return [f"{folder}/config.json", *(f"{folder}/{WEIGHTS}{ending}" for ending in endings)]
