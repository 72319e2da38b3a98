"""What teachers' tokens are: of unit length or raw, whitened on reading or not. Without torch."""

from __future__ import annotations

from typing import Any

WHITEN = "whether tokens are whitened on reading, by the principal components of the training images' tokens"
WHITE_WORDS = (
    " On reading, tokens are whitened: less the mean of the training images' tokens, along their principal components, "
    "each divided by its standard deviation."
)


def named_raw(model: str, unit_length: bool) -> str:
    """The model's name in token stores: raw tokens have a store of their own."""
    return model if unit_length else f"{model}-raw"


def length_facts(unit_length: bool) -> dict[str, Any]:
    """The entry of a manifest; none for tokens of unit length, as they were once the only ones."""
    return {} if unit_length else {"unit_length": False}


def length_in_words(unit_length: bool) -> str:
    """The end of a sentence on the tokens."""
    return ", each of unit length" if unit_length else ", as the network gives them"
