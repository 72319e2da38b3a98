"""Text encoders of the transformers library: tokenizer and transformer, loaded when they are first asked.

Shapes: B texts, L positions, D width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from urepa.core.errors import UserError
from urepa.core.text_protocols import TokenizedText

Load = Callable[[], tuple[Any, Any]]  # the tokenizer and the transformer
Pool = Callable[[Any, Tensor], Tensor]  # the transformer's output and the mask [B,L] to [B,D]


class TextTransformer:
    """A frozen text transformer (`urepa.core.text_protocols.TextEncoderNetwork`), computed in fp32."""

    def __init__(self, *, model: str, layer: int, length: int, width: int, load: Load, pool: Pool) -> None:
        """`layer` counts from the end: -1 is the last one, after the final norm where the network has one."""
        self.model, self.layer, self.length, self.width = model, layer, length, width
        self._load, self._pool = load, pool

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        tokenizer, network = self._load()
        config = network.config
        if config.hidden_size != self.width:
            raise UserError(
                f"the text encoder {self.model} has width {config.hidden_size}, not {self.width}; give "
                f"data.text_encoder.width={config.hidden_size}"
            )
        if self.length > config.max_position_embeddings:
            raise UserError(
                f"data.text_encoder.length={self.length}: {self.model} has {config.max_position_embeddings} positions; "
                "give as many or fewer"
            )
        if -self.layer > config.num_hidden_layers:
            raise UserError(
                f"data.text_encoder.layer={self.layer}: {self.model} has {config.num_hidden_layers} layers; give "
                f"-{config.num_hidden_layers} to -1"
            )
        return tokenizer, network.float().eval().requires_grad_(False)

    def manifest(self) -> dict[str, Any]:
        return {"model": self.model, "layer": self.layer, "length": self.length, "computed_in": "float32"}

    def weights_sha256(self) -> str:
        """Of names and values, however they are stored."""
        digest = hashlib.sha256()
        for name, value in sorted(self._loaded[1].state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def tokenize(self, texts: Sequence[str]) -> TokenizedText:
        tokenizer = self._loaded[0]
        whole = tokenizer(list(texts), truncation=False, verbose=False).input_ids
        found = tokenizer(
            list(texts), padding="max_length", max_length=self.length, truncation=True, return_tensors="pt"
        )
        cut = [max(0, len(ids) - self.length) for ids in whole]
        return TokenizedText(found.input_ids, found.attention_mask.bool(), cut)

    @torch.no_grad()
    def encode(self, ids_BL: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor]:
        network = self._loaded[1].to(ids_BL.device)
        with torch.autocast(ids_BL.device.type, enabled=False):
            out = network(input_ids=ids_BL, attention_mask=mask_BL.long(), output_hidden_states=True)
            tokens_BLD = out.last_hidden_state if self.layer == -1 else out.hidden_states[self.layer]
            pooled_BP = self._pool(out, mask_BL)
        return torch.where(mask_BL.unsqueeze(2), tokens_BLD, 0), pooled_BP
