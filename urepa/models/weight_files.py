"""Reading and writing files of weights, and the memory of loaded weights."""

from __future__ import annotations

import warnings
import zipfile
from argparse import Namespace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from urepa.core.errors import UserError
from urepa.core.files import DAMAGED


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, by name. Raises UserError if it is damaged or of another kind."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except SafetensorError as error:
        raise UserError(f"{file} is not a complete safetensors file ({error}); copy it again") from error


def save_tensors(tensors: dict[str, Tensor], file: Path) -> None:
    """Writes tensors as a .safetensors file."""
    from safetensors.torch import save_file

    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, file)


def read_torch(file: Path) -> Any:
    """The tensors in a torch file and the settings beside them; nothing else is unpickled. Raises UserError if the file
    holds other objects or is damaged."""
    try:
        with torch.serialization.safe_globals([Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle protocol; the error is clearer
            return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except UnpicklingError as error:
        raise UserError(f"{file} holds more than tensors, or no weights at all; save them as .safetensors") from error
    except DAMAGED as error:
        raise UserError(f"{file} is not a complete torch file; copy it again") from error


@torch.no_grad()
def own_memory(module: nn.Module) -> nn.Module:
    """Copies weights from a mapped file to newly allocated memory, in place. There they begin at multiples of 64 bytes,
    in a safetensors file at multiples of 8, and the rounding of CPU kernels depends on this alignment. Without the
    copy, a run would give other numbers in one process than in several, for which diffusers loads weights
    differently."""
    for parameter in module.parameters():
        parameter.data = parameter.data.clone()
    return module


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable parameters, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
