"""Disjoint training, validation and test splits of a small track, drawn from the images' ids alone."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from urepa.core.errors import UserError
from urepa.core.random_draws import unit_interval
from urepa.data.cache import SPLITS
from urepa.data.lists.split_sizes import KEYS, check_shares, refuse_other_classes, share_of
from urepa.data.sources.source_image import SourceImage


def split_rows(
    rows: Sequence[SourceImage],
    num_classes: int,
    held_out: dict[str, int],
    limit: int | None,
    train_only: Collection[str] = frozenset(),
) -> dict[str, list[SourceImage]]:
    """The rows of each split, class-balanced. The publisher's test images, if any, are only used for testing.
    `held_out` is the number of validation and test images, `limit` that of training images (None: all that are left). A
    row that `rows` lacks, or a held-out row that is in `train_only`, is replaced by the next of its class. Raises
    UserError if there are too few images, or if they have another number of classes."""
    rows = sorted(rows, key=lambda row: unit_interval("split", row.name))
    by_class: list[dict[str, list[SourceImage]]] = [{"train": [], "test": []} for _ in range(num_classes)]
    there = {row.class_id for row in rows}
    refuse_other_classes(there, num_classes)
    for row in rows:
        by_class[row.class_id]["test" if row.split == "test" else "train"].append(row)
    check_shares([(len(pools["train"]), len(pools["test"])) for pools in by_class], held_out, limit)
    splits: dict[str, list[SourceImage]] = {split: [] for split in SPLITS}
    for class_id, pools in enumerate(by_class):
        train, test = pools["train"], pools["test"] or pools["train"]
        for split, pool in (("test", test), ("val", train)):
            share = share_of(held_out[split], class_id, num_classes)
            taken = [row for row in pool if row.name not in train_only][:share]
            if len(taken) < share:
                raise UserError(
                    f"{KEYS[split]}={held_out[split]} asks for {share} images of one class; there are {len(taken)} "
                    "left that equal no image of another split: ask for fewer"
                )
            splits[split] += taken
            names = {row.name for row in taken}
            pool[:] = [row for row in pool if row.name not in names]
        wanted = len(train) if limit is None else share_of(limit, class_id, num_classes)
        splits["train"] += train[:wanted]
    return splits
