"""Train, validation and test of a small track, with nothing shared: each image's place is drawn from its id alone."""

from __future__ import annotations

from collections.abc import Sequence

from urepa.data.cache import SPLITS
from urepa.data.sources import Row
from urepa.draws import unit_interval
from urepa.errors import UserError

KEYS = {"val": "data.validation_images", "test": "data.test_images"}


def split_up(
    rows: Sequence[Row], num_classes: int, held_out: dict[str, int], limit: int | None
) -> dict[str, list[Row]]:
    """The rows of each split, class-balanced; where the publisher kept test images apart they stay apart. `held_out`
    says how many validation and test images there are to be, `limit` how many training images (None: all that are
    left). A row that is left out of `rows` gives its place to the next of its class. UserError where the images are
    too few, or of another number of classes."""
    rows = sorted(rows, key=lambda row: unit_interval("split", row.name))
    by_class: list[dict[str, list[Row]]] = [{"train": [], "test": []} for _ in range(num_classes)]
    there = {row.class_id for row in rows}
    refuse_other_classes(there, num_classes)
    for row in rows:
        by_class[row.class_id]["test" if row.split == "test" else "train"].append(row)
    splits: dict[str, list[Row]] = {split: [] for split in SPLITS}
    for class_id, pools in enumerate(by_class):
        train, test = pools["train"], pools["test"] or pools["train"]
        for split, pool in (("test", test), ("val", train)):
            splits[split] += _take(pool, share_of(held_out[split], class_id, num_classes), KEYS[split])
        wanted = len(train) if limit is None else share_of(limit, class_id, num_classes)
        splits["train"] += _take(train, wanted, "data.limit")
    return splits


def refuse_other_classes(there: set[int], num_classes: int) -> None:
    """UserError where the class ids of the images are not 0 to `num_classes` − 1."""
    if there != set(range(num_classes)):
        found = max(there) + 1 if max(there, default=-1) >= num_classes else len(there)
        raise UserError(f"the images have {found} classes; data.num_classes={num_classes}: give {found} for these")


def share_of(total: int, class_id: int, num_classes: int) -> int:
    """A class's part of `total` images; the first classes get one more where it does not divide."""
    return total // num_classes + (class_id < total % num_classes)


def _take(pool: list[Row], n: int, key: str) -> list[Row]:
    """The first `n` rows, removed from the pool."""
    if n > len(pool):
        raise UserError(f"{key} asks for {n} images of one class; there are {len(pool)} left: ask for fewer")
    taken, pool[:n] = pool[:n], []
    return taken
