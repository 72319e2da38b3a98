"""The text encoder of a CLIP, of a folder in the layout of diffusers or of transformers. No code of the folder runs.

Shapes: B texts, L positions, D width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from urepa.core import progress
from urepa.core.errors import UserError
from urepa.models.text_encoders.clip_sizes import places
from urepa.models.text_encoders.text_transformer_net import TextTransformer


def clip_text(folder: Path, layer: int, length: int, width: int) -> TextTransformer:
    """The network in this folder."""

    def load() -> tuple[Any, Any]:
        return load_clip(folder)

    return TextTransformer(
        model=folder.resolve().name, layer=layer, length=length, width=width, load=load, pool=last_token
    )


def last_token(out: Any, mask_BL: Tensor) -> Tensor:
    """The state [B,D] of the first end-of-text token, after the final norm."""
    pooled_BD: Tensor = out.pooler_output
    return pooled_BD


def load_clip(folder: Path) -> tuple[Any, Any]:
    """Tokenizer and network. UserError where they cannot be read."""
    from transformers import CLIPTextModel, CLIPTokenizer

    progress.hide_loading()
    tokenizer, network = places(folder)
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        return (
            CLIPTokenizer.from_pretrained(tokenizer, **local),
            CLIPTextModel.from_pretrained(network, use_safetensors=True, **local),
        )
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"data.text_encoder.model={folder} could not be loaded ({reason})") from error
