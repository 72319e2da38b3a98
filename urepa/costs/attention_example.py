"""The attention of a teacher in a batch whose step is counted (`urepa.method.attention_maps`).

Shapes: B batch, N patches, A heads, E their width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from urepa.core.teacher_names import ALONE
from urepa.core.types import Attention
from urepa.data.stores.bucket_views import teachers_of
from urepa.method.attention_maps import teacher_blocks


def attention_example(view: Any, teacher: Any | None, loss: Any) -> dict[int, Attention]:
    """The attention of one image of a bucket (`urepa.data.stores.bucket_views`) in the teacher's blocks that the loss
    reads, on the meta device; no weights are read. Empty for a loss that reads none."""
    blocks = teacher_blocks(loss)
    if not blocks:
        return {}
    assert teacher is not None, "attention is compared with a teacher's"
    with torch.device("meta"):
        teacher.build_without_weights()
        images = torch.empty(1, 3, *view.image_shape[1:])
        found: dict[int, Attention] = teachers_of(view, teacher)[ALONE].tokens_and_attention(images, blocks)[1]
    return found


def zeros_of(attention: Mapping[int, Attention], size: int) -> dict[int, Attention]:
    """Attention of these shapes for this many images, on the device of the context."""
    return {block: one.map(lambda x: torch.zeros(size, *x.shape[1:])) for block, one in attention.items()}
