"""Mistral Small 3 as Flux2Pipeline calls it, of a pipeline's folder. No code of it runs.

Of the pipeline's processor the tokenizer is read alone: without images it does the rest of what the processor does, the
chat template and the tokens.

Shapes: B texts, L positions, D width.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from urepa.core.errors import UserError
from urepa.core.text_protocols import EncodedText
from urepa.models.text_encoders.pipeline_sizes import KEY, stored_name
from urepa.models.text_encoders.text_transformer_net import (
    Encode,
    Loaded,
    TextTransformer,
    Tower,
    all_count,
    check_length,
    check_width,
    load_pair,
    without_vector,
)


def mistral3(model: str, joined: list[int], length: int, width: int, computed_in: str) -> TextTransformer:
    """The network of this folder or hub id."""
    name = stored_name(model)

    def load() -> Loaded:
        from transformers import AutoTokenizer, Mistral3ForConditionalGeneration

        tokenizer, network = load_pair(model, (1,), 1, AutoTokenizer, Mistral3ForConditionalGeneration, computed_in)
        if tokenizer.chat_template is None:
            raise UserError(f"the tokenizer of {KEY}={model} has no chat template; give Flux.2's")
        if tokenizer.pad_token is None:
            raise UserError(f"the tokenizer of {KEY}={model} has no token that pads; give Flux.2's")
        return tokenizer, network

    def check(configs: list[Any]) -> None:
        own = configs[0].text_config
        if max(joined) > own.num_hidden_layers:
            raise UserError(
                f"data.text_encoder.joined={joined}: {name} has {own.num_hidden_layers} layers; give 0 to "
                f"{own.num_hidden_layers}"
            )
        check_width(name, len(joined) * own.hidden_size, width)
        check_length(name, own.max_position_embeddings, length)

    return TextTransformer(
        facts={"model": name, "family": "mistral3", "joined": joined, "system_message_sha256": _sha256(message())},
        length=length,
        towers=[Tower(load, encode_layers(joined), prepare=as_messages, adds_special=False)],
        check=check,
        computed_in=computed_in,
    )


def message() -> str:
    """Flux.2's system message, as diffusers has it."""
    from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE

    return str(SYSTEM_MESSAGE)


def as_messages(tokenizer: Any, texts: list[str]) -> list[str]:
    """Each as a user's message behind the system message, in the chat template, which writes the special tokens."""
    known = {"tokenize": False, "add_generation_prompt": False}
    written: list[str] = tokenizer.apply_chat_template([_messages(text) for text in texts], **known)
    return written


def _messages(text: str) -> list[dict[str, Any]]:
    said = [("system", message()), ("user", text.replace("[IMG]", ""))]  # an image's token, which nothing stands for
    return [{"role": role, "content": [{"type": "text", "text": words}]} for role, words in said]


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def encode_layers(joined: list[int]) -> Encode:
    """The tokens of these layers side by side. All positions count. Logits are not computed."""

    def encode(network: Any, ids_BL: Tensor, mask_BL: Tensor) -> EncodedText:
        out = network.model(input_ids=ids_BL, attention_mask=mask_BL, output_hidden_states=True, use_cache=False)
        tokens_BLD = torch.cat([out.hidden_states[layer] for layer in joined], dim=2)
        return EncodedText(tokens_BLD, all_count(mask_BL), without_vector(tokens_BLD))

    return encode
