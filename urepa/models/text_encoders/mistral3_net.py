"""Mistral Small 3 from a pipeline's folder, called as in Flux2Pipeline. Code in the folder is never run.

Only the tokenizer of the pipeline's processor is loaded: without images the processor does only what the
tokenizer does, the chat template and the tokens.

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
    network_without_weights,
    without_vector,
)

MISTRAL_SMALL_3 = {"tie_word_embeddings": False}  # 24 B parameters: the differences from the defaults of Mistral3Config


def mistral3(model: str, joined: list[int], length: int, width: int, computed_in: str) -> TextTransformer:
    """The network from this folder or hub id."""
    name = stored_name(model)

    def load() -> Loaded:
        from transformers import AutoTokenizer, Mistral3ForConditionalGeneration

        tokenizer, network = load_pair(model, (1,), 1, AutoTokenizer, Mistral3ForConditionalGeneration, computed_in)
        if tokenizer.chat_template is None:
            raise UserError(f"the tokenizer of {KEY}={model} has no chat template; give Flux.2's")
        if tokenizer.pad_token is None:
            raise UserError(f"the tokenizer of {KEY}={model} has no padding token; give Flux.2's")
        return tokenizer, network

    def empty() -> Any:
        from transformers import Mistral3ForConditionalGeneration

        return network_without_weights(model, 1, Mistral3ForConditionalGeneration, MISTRAL_SMALL_3, computed_in)

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
        towers=[Tower(load, encode_layers(joined), empty, prepare=as_messages, adds_special=False)],
        check=check,
        computed_in=computed_in,
    )


def message() -> str:
    """Flux.2's system message in diffusers."""
    from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE

    return str(SYSTEM_MESSAGE)


def as_messages(tokenizer: Any, texts: list[str]) -> list[str]:
    """Each text as a user's message after the system message, in the chat template, which contains the special
    tokens."""
    known = {"tokenize": False, "add_generation_prompt": False}
    written: list[str] = tokenizer.apply_chat_template([_messages(text) for text in texts], **known)
    return written


def _messages(text: str) -> list[dict[str, Any]]:
    said = [
        ("system", message()),
        ("user", text.replace("[IMG]", "")),
    ]  # removes the placeholder of an image; there are no images
    return [{"role": role, "content": [{"type": "text", "text": words}]} for role, words in said]


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def encode_layers(joined: list[int]) -> Encode:
    """A function that concatenates the tokens of these layers along their width. The mask includes all positions.
    Logits are not computed."""

    def encode(network: Any, ids_BL: Tensor, mask_BL: Tensor) -> EncodedText:
        out = network.model(input_ids=ids_BL, attention_mask=mask_BL, output_hidden_states=True, use_cache=False)
        tokens_BLD = torch.cat([out.hidden_states[layer] for layer in joined], dim=2)
        return EncodedText(tokens_BLD, all_count(mask_BL), without_vector(tokens_BLD))

    return encode
