"""How large a track's caches will be, before anything is built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from urepa.data.reader import AHEAD
from urepa.data.stores.bucket_views import bucket_samples, bucket_views
from urepa.data.stores.record_format import record_bytes

PAGE = 4096
KEY = 20  # characters of a sample id with its suffix: ImageNet's have 14 to 27


@dataclass(frozen=True)
class CacheSize:
    """One cache: the number of its records, the bytes of each, and its size on disk, which is also the memory that
    keeps it in the page cache. Where images have several shapes, `record_bytes` is the size of the largest record."""

    name: str
    records: int
    record_bytes: int
    disk_bytes: int


def cache_sizes(track: Any, teacher: Any | None) -> list[CacheSize]:
    """The caches that the track's build makes for training, in the order in which they are made. Without a teacher, or
    with one that runs during training, there are no tokens. Where images have several shapes, the size on disk is the
    sum over the buckets; before the buckets' lists exist, all records count as large as those of the largest bucket."""
    views, samples = bucket_views(track), bucket_samples(track)
    stores = {name: view.stores(teacher) for name, view in views.items()}
    lengths = {
        name: {bucket: record_bytes(*own[name]) for bucket, own in stores.items()}
        for name in next(iter(stores.values()))
    }
    if samples is None:  # unknown: all records may belong to the bucket with the largest records
        lengths = {name: {"": max(own.values())} for name, own in lengths.items()}
        samples = {"": track.expected_samples()}
    sizes = []
    for name, own in lengths.items():
        for kind in ("", "_flip") if track.flip else ("",):
            counts = {bucket: n["train"] if kind else sum(n.values()) for bucket, n in samples.items()}
            disk = sum(lmdb_bytes(n, own[bucket]) for bucket, n in counts.items())
            sizes.append(CacheSize(name + kind, sum(counts.values()), max(own.values()), disk))
    if track.prompt_bytes:
        sizes.append(
            CacheSize(
                "prompts", track.num_classes + 1, track.prompt_bytes, (track.num_classes + 1) * track.prompt_bytes
            )
        )
    if hasattr(track, "caption_records") and (found := track.caption_records()) is not None:
        records, length = found
        sizes.append(CacheSize("text", records, length, lmdb_bytes(records, length)))
    return sizes


def lmdb_bytes(records: int, length: int) -> int:
    """The size of LMDB's file for records of this length. A record of half a page or more has pages of its own, with 16
    bytes of header; its key lies in a leaf page. Smaller records share leaf pages, and the result then assumes full
    leaf pages, so it is a lower bound."""
    header, slot = 8, 2
    own_pages, leaf = -(-(16 + length) // PAGE), header + KEY + 8 + slot
    if header + KEY + length <= PAGE // 2 - 16:
        own_pages, leaf = 0, header + KEY + length + slot
    leaf_pages = -(-records // ((PAGE - 16) // leaf))
    return (own_pages * records + leaf_pages) * PAGE


def reader_bytes(track: Any, teacher: Any | None, batch_size: int) -> int:
    """The memory that the training reader allocates for tokens: the steps it reads ahead and the one in use, each sized
    for the largest records."""
    largest: dict[str, int] = {}
    for view in bucket_views(track).values():
        for name, store in view.stores(teacher).items():
            if name != "latents":
                largest[name] = max(largest.get(name, 0), record_bytes(*store))
    return sum((AHEAD + 1) * batch_size * size for size in largest.values())
