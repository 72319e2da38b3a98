"""The caches of a track whose images have several shapes: one bucket, with a `Cache` of its own, for each shape.

Shapes: B samples of one bucket, N tokens, D width, CHW latent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

from urepa.core.teacher_names import ALONE
from urepa.core.types import Tokens
from urepa.data.cache import Cache
from urepa.data.image_statistics import IMAGE_TOKENS
from urepa.data.lists.content import Identity
from urepa.data.lists.samples import Sample, Samples


class BucketedCache:
    """Several `Cache`s as one. The samples of one call must all be in the same bucket."""

    def __init__(self, buckets: Sequence[Cache]) -> None:
        """`buckets` holds at least one cache; each has the name of its bucket."""
        self.buckets = tuple(buckets)
        first = self.buckets[0]
        self.splits: Mapping[str, Samples] = {
            split: Samples.concatenate(bucket.splits[split] for bucket in self.buckets) for split in first.splits
        }
        self.num_classes, self.conditions = first.num_classes, first.conditions
        self.class_names, self.teacher_names, self.flips = first.class_names, first.teacher_names, first.flips

    @cached_property
    def _places(self) -> dict[str, int]:
        """The index of the bucket that holds each sample id."""
        return {
            sample_id: place
            for place, bucket in enumerate(self.buckets)
            for samples in bucket.splits.values()
            for sample_id in samples.ids()
        }

    def bucket_of(self, sample: Sample) -> Cache:
        """The cache in `buckets` that holds the sample."""
        return self.buckets[self._places[sample.sample_id]]

    def _bucket_of_all(self, samples: Sequence[Sample]) -> Cache:
        found = {self._places[s.sample_id] for s in samples}
        assert len(found) == 1, "samples that are read together have one shape"
        return self.buckets[found.pop()]

    def x0(self, samples: Sequence[Sample], posterior: list[np.random.Generator] | None = None) -> Tensor:
        """See `Cache.x0`: [B,C,H,W]."""
        return self._bucket_of_all(samples).x0(samples, posterior)

    def teachers(self, samples: Sequence[Sample], raw: dict[str, np.ndarray] | None = None) -> dict[str, Tokens]:
        """See `Cache.teachers`: [B,N,D] by teacher."""
        return self._bucket_of_all(samples).teachers(samples, raw)

    def teacher_BND(self, samples: Sequence[Sample], teacher: str = ALONE) -> Tensor | None:
        """See `Cache.teacher_BND`."""
        return self._bucket_of_all(samples).teacher_BND(samples, teacher)

    def mean_token(self, teacher: str = ALONE) -> Tensor | None:
        """A teacher's mean token [D] over all training tokens: the buckets' means, weighted by their token counts."""
        total: Any = 0.0
        count = 0
        for bucket in self.buckets:
            mean_D = bucket.mean_token(teacher)
            if mean_D is None:
                return None
            height, width = bucket.grids[teacher]
            tokens = len(bucket.splits["train"]) * height * width
            total, count = total + mean_D.double() * tokens, count + tokens
        return (total / count).float()

    def close(self) -> None:
        """See `Cache.close`."""
        for bucket in self.buckets:
            bucket.close()

    def fingerprint(self) -> dict[str, Any]:
        """What a run records about its data: `Cache.fingerprint`, with the manifests of each bucket."""
        prints = {bucket.bucket: bucket.fingerprint() for bucket in self.buckets}
        first = prints[self.buckets[0].bucket]
        return {
            "latents": {name: one["latents"] for name, one in prints.items()},
            "tokens": None if first["tokens"] is None else {name: one["tokens"] for name, one in prints.items()},
            "flip": self.flips,
            "samples": {split: len(samples) for split, samples in self.splits.items()},
            "buckets": {name: one["samples"] for name, one in prints.items()},
            "content": self.content(),
        } | {
            **({"text": first["text"]} if "text" in first else {}),
            **({IMAGE_TOKENS: {n: one[IMAGE_TOKENS] for n, one in prints.items()}} if IMAGE_TOKENS in first else {}),
        }

    def content(self) -> dict[str, str]:
        """Digests of the data, as in `Cache.content`: `samples` covers the ids, classes and splits of all buckets; each
        kind of record has one digest over the buckets' names and digests, sorted by name."""
        found = {bucket.bucket: bucket.content() for bucket in self.buckets}
        kinds = [kind for kind in next(iter(found.values())) if kind != "samples"]
        content = {"samples": Identity(*self.splits.values()).of()}
        for kind in kinds:
            parts = [text for name, one in sorted(found.items()) if kind in one for text in (name, one[kind])]
            content[kind] = hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()
        return content


Caches = Cache | BucketedCache  # a track's caches, of one image shape or of several


def caches_of(buckets: Sequence[Cache]) -> Caches:
    """A track's caches from those of its buckets; a single bucket's cache is returned as it is."""
    return buckets[0] if len(buckets) == 1 else BucketedCache(buckets)
