"""The number of images in each split of a track, computed from counts without torch or images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from urepa.core.errors import UserError

DIGITS = (178, 182, 177, 183, 181, 182, 181, 179, 174, 180)  # images per class, 0 to 9, of scikit-learn's digits
KEYS = {"val": "data.validation_images", "test": "data.test_images"}


def refuse_other_classes(there: set[int], num_classes: int) -> None:
    """Raises UserError if the class ids of the images are not 0 to `num_classes` − 1."""
    if there != set(range(num_classes)):
        found = max(there) + 1 if max(there, default=-1) >= num_classes else len(there)
        raise UserError(f"the images have {found} classes; data.num_classes={num_classes}: give {found} for these")


def share_of(total: int, class_id: int, num_classes: int) -> int:
    """A class's share of `total` images; a remainder goes to the first classes, one image each."""
    return total // num_classes + (class_id < total % num_classes)


def check_shares(pools: Sequence[tuple[int, int]], held_out: Mapping[str, int], limit: int | None) -> None:
    """Raises UserError if a class has too few images. `pools` holds the numbers of each class's training and
    test images in the publisher's splits (without test images they are drawn from the training images), `held_out` the
    requested numbers of validation and test images, `limit` that of training images (None: all that are left)."""
    for class_id, (train, test) in enumerate(pools):
        wanted = {split: share_of(held_out[split], class_id, len(pools)) for split in KEYS}
        _check_remaining(wanted["test"], test or train, KEYS["test"], held_out["test"])
        train -= 0 if test else wanted["test"]
        _check_remaining(wanted["val"], train, KEYS["val"], held_out["val"])
        if limit is not None:
            _check_remaining(share_of(limit, class_id, len(pools)), train - wanted["val"], "data.limit", limit)


def _check_remaining(wanted: int, left: int, key: str, total: int) -> None:
    if wanted > left:
        raise UserError(f"{key}={total} asks for {wanted} images of one class; there are {left} left: ask for fewer")


def check_batch_size(batch_size: int, training_samples: int) -> None:
    """Raises UserError if there are fewer training samples than a global batch has."""
    if batch_size > training_samples:
        raise UserError(
            f"trainer.batch_size={batch_size} is more than the {training_samples} training samples; give a smaller one"
        )


def check_buckets(samples: Mapping[str, int], batch_size: int) -> None:
    """Raises UserError if some of several buckets have fewer training samples than a global batch: they would never be
    trained on."""
    small = {name: count for name, count in samples.items() if count < batch_size}
    if small:
        counted = ", ".join(f"{name} has {count}" for name, count in small.items())
        rest = [name.split("x") for name in samples if name not in small]
        kept = "[" + ",".join(f"[{height},{width}]" for height, width in rest) + "]"
        advice = f"leave them out (data.buckets='{kept}'), or" if rest else ""
        raise UserError(
            f"buckets with fewer training images than trainer.batch_size={batch_size} would never be trained on: "
            f"{counted}; {advice} give a smaller trainer.batch_size".replace("  ", " ")
        )


def expected_samples(
    limit: int | None, held_out: Mapping[str, int], count: Callable[[], Mapping[str, int]]
) -> dict[str, int]:
    """The number of samples in each split of a small track, before or after it is built. `count` returns the images per
    publisher's split; it is called only if there is no limit. Raises UserError if none is left to train on."""
    if limit is not None:
        return {"train": limit, **held_out}
    there = count()
    test_images = there.get("test", 0)
    pool = sum(there.values()) - test_images
    taken = held_out["val"] + (0 if test_images else held_out["test"])
    if taken >= pool:
        asked = " and ".join(f"{KEYS[split]}={held_out[split]}" for split in (("val",) if test_images else KEYS))
        images = "training images" if test_images else "images"
        raise UserError(f"there are {pool} {images}, and {asked} leave none of them to train on: give fewer")
    return {"train": pool - taken, **held_out}


def expected_latent_samples(wanted: Mapping[str, int | None], count: Callable[[], Mapping[str, int]]) -> dict[str, int]:
    """The number of samples of each split of a large track; None in `wanted` means all images."""
    known = {split: n for split, n in wanted.items() if n is not None}
    if len(known) == len(wanted):
        return known
    there = count()
    held_out = there.get(
        "test", 0
    )  # the publisher's split; without one, validation images are drawn from the training images
    val = known.get("val", held_out)
    return {"train": sum(there.values()) - (held_out or val), "val": val} | known
