"""What a text encoder declares of itself, and what it builds (`urepa.core.protocols` has the kinds that train).

Shapes: B texts, L positions, D width of a token, P width of the pooled vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TokenizedText:
    """Texts as a tokenizer gives them: ids [B,L] (int64), a mask [B,L], True where a position counts, and how many
    tokens of each text were cut off."""

    ids_BL: Tensor
    mask_BL: Tensor
    cut: list[int]


class TextEncoderNetwork(Protocol):
    """A frozen text encoder with its tokenizer. Its weights are read when they are needed."""

    def manifest(self) -> dict[str, Any]:
        """What its records depend on but for the weights' values, as plain values: the model's name, layer, length."""
        ...

    def weights_sha256(self) -> str:
        """Digest of its weights."""
        ...

    def tokenize(self, texts: Sequence[str]) -> TokenizedText:
        """Texts cut or padded to `length` positions."""
        ...

    def encode(self, ids_BL: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [B,L,D], 0 where the mask is False, and pooled vectors [B,P]; float32, on the device of the ids."""
        ...


class TextEncoder(Protocol):
    """Captions to tokens and a vector (urepa/models/text_encoders/)."""

    width: int  # D
    pooled_width: int  # P
    length: int  # L

    def check(self) -> None:
        """UserError where its settings do not go together."""
        ...

    def check_files(self) -> None:
        """UserError where its weights or its tokenizer are not on this disk."""
        ...

    def stored_as(self) -> str:
        """What its store of records is called: its model, layer and length, as part of a folder's name."""
        ...

    def build(self) -> Any:
        """The `TextEncoderNetwork`."""
        ...

    def description(self) -> str:
        """Network, layer and length as `describe` writes them, in whole sentences."""
        ...
