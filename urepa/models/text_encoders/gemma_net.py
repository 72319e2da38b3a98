"""Gemma 2 from a pipeline's folder, called as in SanaPipeline or Lumina2Pipeline. Code in the folder is never run.

Shapes: B texts, M positions with an instruction, L positions that are kept, D width of a token.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from urepa.core.text_protocols import EncodedText
from urepa.models.text_encoders.pipeline_sizes import stored_name
from urepa.models.text_encoders.text_transformer_net import (
    Loaded,
    TextTransformer,
    Tower,
    check_layer,
    check_length,
    check_width,
    layer_tokens,
    load_pair,
    network_without_weights,
)

GEMMA_2_2B: dict[str, Any] = {}  # 2.6 B parameters: the defaults of Gemma2Config


def gemma(
    model: str,
    layer: int,
    length: int,
    width: int,
    lowercase: bool,
    before: str | None,
    computed_in: str,
    drops_before: bool = False,
) -> TextTransformer:
    """The network from this folder or hub id. The padding follows a caption's tokens, whatever side the tokenizer's
    config has. `before` is put before every caption that is not empty. If `drops_before`, its tokens take part in the
    encoding and are not returned, except for the first and the last one."""
    name = stored_name(model)
    assert before is not None or not drops_before
    instructed = _Instructed(layer, length, before or "")

    def load() -> Loaded:
        from transformers import AutoTokenizer, Gemma2Model

        return load_pair(model, (1,), 1, AutoTokenizer, Gemma2Model, computed_in, padding_side="right")

    def empty() -> Any:
        from transformers import Gemma2Model

        return network_without_weights(model, 1, Gemma2Model, GEMMA_2_2B, computed_in)

    def check(configs: list[Any]) -> None:
        check_width(name, configs[0].hidden_size, width)
        check_length(name, configs[0].max_position_embeddings, length)
        check_layer(name, configs[0].num_hidden_layers, layer)

    def put_before(tokenizer: Any, texts: list[str]) -> list[str]:
        return [f"{before}{text}" if text else text for text in texts]

    told: dict[str, Any] = {} if before is None else {"before": before}  # stores of earlier versions do not have it
    tower = Tower(load, layer_tokens(layer), empty, prepare=None if before is None else put_before)
    if drops_before:
        told |= {"drops_before": True}
        tower = Tower(load, instructed.encode, empty, length=instructed.positions, prepare=put_before)
    return TextTransformer(
        facts={"model": name, "family": "gemma", "layer": layer, "lowercase": lowercase} | told,
        length=length,
        towers=[tower],
        check=check,
        computed_in=computed_in,
        lowercase=lowercase,
    )


class _Instructed:
    """Encodes captions after an instruction, and returns the start token, the instruction's last token and the tokens
    after it, as SanaPipeline does. An empty caption is encoded without the instruction."""

    def __init__(self, layer: int, length: int, before: str) -> None:
        self._layer_tokens, self._length, self._before = layer_tokens(layer), length, before
        self._tokens = 0  # of the instruction, with the start token; known once the tokenizer is loaded

    def positions(self, tokenizer: Any) -> int:
        """M: a caption may be as long as without an instruction."""
        self._tokens = len(tokenizer.encode(self._before))
        return self._tokens + self._length - 2

    def encode(self, network: Any, ids_BM: Tensor, mask_BM: Tensor) -> EncodedText:
        whole = self._layer_tokens(network, ids_BM, mask_BM)
        most, device = ids_BM.shape[1], ids_BM.device
        first_L = torch.arange(self._length, device=device)
        after_L = torch.where(first_L == 0, 0, first_L + most - self._length)
        is_plain_B = mask_BM.sum(1) < self._tokens
        kept_BL = torch.where(is_plain_B[:, None], first_L, after_L)
        tokens_BLD = whole.tokens_BLD.take_along_dim(kept_BL[:, :, None], dim=1)
        return EncodedText(tokens_BLD, whole.mask_BL.take_along_dim(kept_BL, dim=1), whole.pooled_BP)
