"""A teacher's tokens, a VAE's latents and captions' records, computed during training instead of read from a cache.
Each class replaces a store. Tokens and latents of a mirror image are computed from the mirrored image.


Shapes: R records, N tokens, D width, S image size, CHW latent, V values of a caption's record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from urepa.core.types import Attention
from urepa.data.stores.record_keys import is_mirrored, sample_id_of

MEAN_SAMPLES = 256  # training images over which the mean token is taken
AT_ONCE = 32  # images that the VAE encodes together, whose first feature maps are large, and captions in a text encoder
ImagesOf = Callable[[list[str]], Tensor]  # from sample ids, or keys, to their images
NO_FACTS: Mapping[str, Any] = {}


def own_device() -> torch.device:
    """This process's GPU with its index, or the CPU. In another thread, "cuda" without an index is the first GPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def images_of(keys: list[str], read: ImagesOf) -> Tensor:
    """The images of the records with these keys, mirrored for keys of mirror images. `read` maps sample ids to
    images."""
    images = read(list(map(sample_id_of, keys)))
    mirrored_R111 = torch.tensor(list(map(is_mirrored, keys))).view(-1, 1, 1, 1)
    return torch.where(mirrored_R111, images.flip(-1), images)


class OnlineTokens:
    """A teacher's tokens. `images` maps the records' keys to RGB [R,3,S,S] in [0,1] (`images_of`); `facts` are added to
    the manifest."""

    record_bytes = 0

    def __init__(
        self, teacher: Any, images: ImagesOf, train_ids: Iterable[str], facts: Mapping[str, Any] = NO_FACTS
    ) -> None:
        self.teacher, self.images, self.device = teacher, images, own_device()
        self._mean_ids = list(islice(train_ids, MEAN_SAMPLES))
        self.manifest = {"kind": "online", "teacher": teacher.manifest() | dict(facts)}

    def tensor(self, keys: list[str], raw_RB: np.ndarray | None = None) -> Tensor:
        """Tokens [R,N,D] of the samples, float32, on this process's device."""
        images = self.images(keys).to(self.device)
        with torch.autocast(self.device.type, enabled=False):  # validation calls this inside autocast
            # a clone is no inference tensor: the loss saves the tokens for its backward pass
            return self.teacher.tokens(images).x_BND.clone()

    def tokens_and_attention(self, keys: list[str], blocks: Sequence[int]) -> tuple[Tensor, dict[int, Attention]]:
        """As `tensor`, with the attention of these of the teacher's blocks
        (`urepa.core.attention_protocols.AttendingTeacher`)."""
        images = self.images(keys).to(self.device)
        with torch.autocast(self.device.type, enabled=False):
            tokens, attention = self.teacher.tokens_and_attention(images, blocks)
            return tokens.x_BND.clone(), {block: one.map(torch.clone) for block, one in attention.items()}

    @cached_property
    def _mean(self) -> Tensor:
        chunks = [self._mean_ids[i : i + 32] for i in range(0, len(self._mean_ids), 32)]
        tokens_RND = torch.cat([self.tensor(ids) for ids in chunks])
        if not self.manifest["teacher"].get("unit_length", True):  # the token loss compares directions
            tokens_RND = F.normalize(tokens_RND, dim=-1)
        return tokens_RND.double().mean((0, 1)).float().cpu()

    def mean_token(self) -> Tensor:
        """The mean token [D] over the first training samples (a cache averages over all of them)."""
        return self._mean

    def close(self) -> None:
        """Nothing is open."""


class OnlineLatents:
    """A VAE's latents, or their moments. `read` returns RGB uint8 [R,3,S,S]; `encode` turns it into records as the
    latents stage does. `folder` holds the images; `mark` is a file as old as the images."""

    def __init__(
        self, encode: Callable[[Tensor], np.ndarray], read: ImagesOf, manifest: dict[str, Any], mark: Path, flips: bool
    ) -> None:
        self._encode, self._read = encode, read
        self.manifest = {"kind": "online"} | manifest
        self.shape = tuple(manifest["shape"])
        self.mark, self.folder = mark, mark.parent
        self.mirror = self if flips else None  # this object computes the mirror images' latents too

    def tensor(self, keys: list[str], raw_RB: np.ndarray | None = None) -> Tensor:
        """The records [R, *shape], float32, on the CPU."""
        images = images_of(keys, self._read)
        with torch.autocast(own_device().type, enabled=False):  # validation asks inside it, training does not
            return torch.cat([torch.from_numpy(self._encode(part)) for part in images.split(AT_ONCE)])

    def read(self, keys: list[str]) -> np.ndarray:
        """The records as an array."""
        return self.tensor(keys).numpy()

    def close(self) -> None:
        """Nothing is open."""


class OnlineText:
    """The records of captions. `encode` computes the records [R,V] of texts, which are not rounded to fp16 as in a
    store; `facts` are entries of the manifest that a store would have."""

    def __init__(self, encode: Callable[[Sequence[str]], Tensor], facts: dict[str, Any]) -> None:
        self._encode = encode
        self.manifest = facts | {"kind": "online"}

    def of_texts(self, texts: Sequence[str]) -> Tensor:
        """The records [R,V] of any texts, float32, on the CPU."""
        parts = [texts[start : start + AT_ONCE] for start in range(0, len(texts), AT_ONCE)]
        return torch.cat([self._encode(part).cpu() for part in parts])

    def close(self) -> None:
        """Nothing is open."""
