"""What a text encoder declares of itself, and what it builds (`urepa.core.protocols` has the kinds that train).

Shapes: B texts, K rows of whole numbers, L positions, D width of a token, P width of the pooled vector, S stacked
layers, E width of their tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

from urepa.core.part_names import LAYERS, POOLED, TEXT

if TYPE_CHECKING:
    from torch import Tensor, nn


class NullText(Enum):
    """What stands for no caption."""

    empty = "empty"  # the record of the empty prompt
    zeros = "zeros"  # zeros, at positions that all count


@dataclass(frozen=True)
class TokenizedText:
    """Texts as tokenizers give them: whole numbers [B,K,L] for the network alone (int64), such as ids and their mask,
    and how many tokens of each text were cut off."""

    inputs_BKL: Tensor
    cut: list[int]


@dataclass(frozen=True)
class EncodedText:
    """What a network gives of texts: tokens [B,L,D], 0 where the mask [B,L] is False, and pooled vectors [B,P]; P is 0
    where there are none. If the encoder has `layers`, also their tokens [B,S,L,E], with the same mask. Floats are
    float32."""

    tokens_BLD: Tensor
    mask_BL: Tensor
    pooled_BP: Tensor
    layers_BSLE: Tensor | None = None


class TextEncoderNetwork(Protocol):
    """A frozen text encoder with its tokenizer. Its weights are read when they are needed. With `data.online_text`
    several threads call it at the same time."""

    lengths: Sequence[int]  # the positions of a caption in each of its networks

    def manifest(self) -> dict[str, Any]:
        """What its records depend on but for the weights' values, as plain values: the model's name, layer, length."""
        ...

    def weights_sha256(self) -> str:
        """Digest of its weights."""
        ...

    def build_without_weights(self) -> nn.ModuleList:
        """Its networks without values, on the meta device; `plan` counts their costs. No weights are read and nothing
        is fetched."""
        ...

    def tokenize(self, texts: Sequence[str]) -> TokenizedText:
        """Texts cut or padded to `length` positions."""
        ...

    def encode(self, inputs_BKL: Tensor) -> EncodedText:
        """What `tokenize` gave, as tokens, their mask and pooled vectors, on the device of the numbers."""
        ...


class TextEncoder(Protocol):
    """Captions to tokens and a vector (urepa/models/text_encoders/). One whose conditions have a part "text.layers" is
    a `LayeredEncoder` too; one that truncates captions at another setting than `length` names it in `cut_by`."""

    width: int  # D
    pooled_width: int  # P; 0: conditions have no part "text.pooled"
    length: int  # L
    null_text: NullText  # what stands for no caption, where the backbone has no null of its own

    def check(self) -> None:
        """UserError where its settings do not go together."""
        ...

    def check_files(self) -> None:
        """UserError where its weights or its tokenizer are not on this disk. Of a hub id nothing is asked."""
        ...

    def hub_files(self) -> dict[str, list[str]]:
        """What `prefetch` fetches: patterns of files by the name of a repository on the hub."""
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


class LayeredEncoder(Protocol):
    """What a text encoder declares of the layers whose tokens are stacked in the part "text.layers"."""

    layers: list[int]  # S of them, by their numbers in the network
    layers_width: int  # E


def stacked_layers(encoder: TextEncoder) -> list[int]:
    """The layers of the part "text.layers"; empty if the encoder does not have it."""
    return list(getattr(encoder, "layers", ()))


def layers_width(encoder: TextEncoder) -> int:
    """E; 0 if the encoder has no layers."""
    return int(getattr(encoder, "layers_width", 0)) if stacked_layers(encoder) else 0


def text_widths(encoder: TextEncoder) -> Mapping[str, int]:
    """The parts of the conditions of captions that this encodes, with their widths."""
    widths = {TEXT: encoder.width} | ({POOLED: encoder.pooled_width} if encoder.pooled_width else {})
    return widths | ({LAYERS: layers_width(encoder)} if stacked_layers(encoder) else {})
