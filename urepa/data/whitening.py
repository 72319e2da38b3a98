"""Teacher tokens that are whitened on reading (`teacher.whiten`): less their mean, along their principal components,
each divided by its standard deviation, so that their covariance is the identity (PCA whitening).

The statistics are those of the tokens of up to IMAGES training images, evenly spaced in the training list, of all
buckets together. They lie in `whitening.npy` beside the records of the first bucket, made when a run first needs them,
and their SHA-256 is in the manifest that the run records. The stored tokens are those of the same teacher without
whitening. FLOOR keeps components that hardly vary from being blown up.

Shapes: R records, N tokens, M tokens of all images, D width.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from urepa.core.errors import UserError
from urepa.core.files import write_whole
from urepa.data.stores.record_reading import Store
from urepa.models.teachers.several_teachers import by_name

if TYPE_CHECKING:
    from urepa.data.bucketed_cache import Caches
    from urepa.data.cache import Cache

FILE = "whitening.npy"
IMAGES = 2048  # training images whose tokens are the statistics
AT_ONCE = 32  # images whose tokens are in memory
FLOOR = 1e-6  # of the mean variance, added to each component's


@dataclass(frozen=True)
class Whitening:
    """`whitened = (x − mean_D) @ matrix_DD`. `constant_D` is the mean of whitened tokens of unit length, the best
    constant answer to them. All are float32."""

    mean_D: Tensor
    constant_D: Tensor
    matrix_DD: Tensor

    def __call__(self, x_RND: Tensor) -> Tensor:
        """Whitened tokens, float32, also within autocast, in which validation reads."""
        with torch.autocast(x_RND.device.type, enabled=False):
            return (x_RND.float() - self.mean_D) @ self.matrix_DD

    def as_file(self) -> bytes:
        """The content of whitening.npy: [2+D,D]."""
        content = io.BytesIO()
        rows = torch.cat([self.mean_D[None], self.constant_D[None], self.matrix_DD])
        np.save(content, rows.numpy(), allow_pickle=False)
        return content.getvalue()

    @staticmethod
    def of_file(content: bytes) -> Whitening:
        """Raises ValueError or EOFError for what `as_file` did not write."""
        rows = torch.from_numpy(np.load(io.BytesIO(content), allow_pickle=False))
        if rows.ndim != 2 or len(rows) != rows.shape[1] + 2:
            raise ValueError(f"it has the shape {tuple(rows.shape)}")
        return Whitening(rows[0], rows[1], rows[2:])


def fit_whitening(chunks_MD: Sequence[Tensor] | Iterator[Tensor]) -> tuple[Tensor, Tensor]:
    """The mean [D] and the matrix [D,D] that whiten these tokens, which come in parts [M,D]; float64. The columns of
    the matrix are in the order of falling variance; the largest entry of each is positive."""
    count, total, products = 0, torch.zeros(()), torch.zeros(())
    for chunk_MD in chunks_MD:
        x_MD = chunk_MD.double()
        count, total, products = count + len(x_MD), total + x_MD.sum(0), products + x_MD.mT @ x_MD
    mean_D = total / count
    variance_D, axes_DD = torch.linalg.eigh(products / count - torch.outer(mean_D, mean_D))
    variance_D, axes_DD = variance_D.flip(0).clamp(min=0), axes_DD.flip(1)
    largest_D = axes_DD.gather(0, axes_DD.abs().argmax(0, keepdim=True))
    axes_DD = axes_DD * largest_D.sign()
    return mean_D, axes_DD / (variance_D + FLOOR * variance_D.mean()).sqrt()


class WhitenedStore(Store):
    """A token store whose tokens are whitened when they are read. It shares the open files of the store."""

    def __init__(self, store: Store, whitening: Whitening, sha256: str) -> None:
        self.__dict__.update(store.__dict__)
        self.whitening = whitening
        self.manifest = store.manifest | {"whitening_sha256": sha256}

    def tensor(self, keys: list[str], raw_RB: np.ndarray | None = None) -> Tensor:
        """The whitened tokens [R,N,D], float32. Records are read into the memory `raw_RB` if given."""
        return self.whitening(super().tensor(keys, raw_RB))

    def mean_token(self) -> Tensor:
        """The best constant answer to whitened tokens [D]."""
        return self.whitening.constant_D


def whitened(caches: Caches, teacher: Any | None, folders: Mapping[str, Path]) -> Caches:
    """The same caches, in which the tokens of teachers with `whiten` are whitened on reading.

    Args:
        teacher: the built teachers; None: no tokens.
        folders: the token store of each teacher in the first bucket, where whitening.npy lies.

    Raises UserError if tokens are computed during training, which have no store, or if the file is damaged.
    """
    for name, one in by_name(teacher).items():
        if not getattr(one, "whiten", False):
            continue
        if not all(isinstance(bucket.tokens[name], Store) for bucket in caches.buckets):
            raise UserError(
                "teacher.whiten=true needs stored tokens, whose statistics it takes: give data.online_teacher=false"
            )
        file = folders[name] / FILE
        if not file.is_file():
            _write(file, caches.buckets, name)
        content = file.read_bytes()
        try:
            found = Whitening.of_file(content)
        except (ValueError, EOFError, OSError) as error:
            raise UserError(f"{file} is damaged ({error}); delete it, and it is made again") from error
        sha256 = hashlib.sha256(content).hexdigest()
        for bucket in caches.buckets:
            bucket.tokens[name] = WhitenedStore(bucket.tokens[name], found, sha256)  # type: ignore[arg-type]
    return caches


def _write(file: Path, buckets: Sequence[Cache], teacher: str) -> None:
    """Fits the statistics and writes them."""
    mean_D, matrix_DD = fit_whitening(_training_tokens(buckets, teacher))
    total, count = torch.zeros(()), 0
    for chunk_MD in _training_tokens(buckets, teacher):
        unit_MD = F.normalize((chunk_MD.double() - mean_D) @ matrix_DD, dim=-1)
        total, count = total + unit_MD.sum(0), count + len(unit_MD)
    fitted = Whitening(mean_D.float(), (total / count).float(), matrix_DD.float())
    try:
        write_whole(file, fitted.as_file())
    except OSError as error:
        raise UserError(f"teacher.whiten=true writes its statistics to {file}, which failed: {error}") from error


def _training_tokens(buckets: Sequence[Cache], teacher: str) -> Iterator[Tensor]:
    """The tokens [M,D] of the chosen training images, in parts."""
    numbers = [len(bucket.splits["train"]) for bucket in buckets]
    for bucket, own in zip(buckets, numbers, strict=True):
        train, chosen = bucket.splits["train"], max(1, min(own, round(IMAGES * own / sum(numbers))))
        places = [i * own // chosen for i in range(chosen)]
        for start in range(0, chosen, AT_ONCE):
            stored_BND = bucket.teacher_BND([train[i] for i in places[start : start + AT_ONCE]], teacher)
            assert stored_BND is not None
            yield stored_BND.flatten(0, 1)
