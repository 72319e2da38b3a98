"""Queries and keys of a transformer of the transformers library, while it computes.

Its blocks attend by the function that `config._attn_implementation` names. `RECORDING` is torch's fused attention, as
they have by default, which also notes what it gets: outputs are the same bit for bit.

Shapes: B batch, N tokens with class and registers, A heads, E their width.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from urepa.core.types import Attention

RECORDING = "urepa_recording"
_of_thread = threading.local()  # the reader's threads run one teacher at the same time


def attend(module: Any, q_BANE: Tensor, k_BANE: Tensor, v_BANE: Tensor, *more: Any, **options: Any) -> Any:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    seen: list[Attention] | None = getattr(_of_thread, "seen", None)
    if seen is not None:
        scale = options.get("scaling")
        seen.append(Attention(q_BANE, k_BANE, q_BANE.shape[-1] ** -0.5 if scale is None else scale))
    return sdpa_attention_forward(module, q_BANE, k_BANE, v_BANE, *more, **options)


@contextmanager
def recorded_attention(network: Any) -> Iterator[list[Attention]]:
    """A list that gets the attention of each block of `network`, in their order, as this thread runs it."""
    from transformers import AttentionInterface

    if network.config._attn_implementation != RECORDING:
        assert network.config._attn_implementation == "sdpa", "another attention would give other tokens"
        AttentionInterface.register(RECORDING, attend)
        network.set_attn_implementation(RECORDING)
    _of_thread.seen = []
    try:
        yield _of_thread.seen
    finally:
        del _of_thread.seen
