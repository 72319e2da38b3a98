"""Equal images in one split alone, so that nothing that is validated or tested was trained on.

Of images that are equal and would lie in several splits, those that the publisher keeps apart as test images are left
out, and those that were drawn for validation or test from the training images go back there; the next of its class
takes the place of each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from urepa.core.escaping import printable
from urepa.data.sources.source_image import SourceImage


class EqualImages:
    """What was found so far: the names of images that are left out, and of those that only training may have."""

    def __init__(self) -> None:
        self.left_out: set[str] = set()
        self.train_only: set[str] = set()
        self._first: dict[str, str] = {}  # an example of each kind, in words

    def keep_apart(self, splits: Mapping[str, Sequence[SourceImage]], groups: Iterable[Sequence[str]]) -> bool:
        """Notes which images are to move. Returns whether some are: the splits are then to be made again.

        Args:
            splits: the images of each split
            groups: the names of equal images among them
        """
        place = {row.name: (split, row) for split, chosen in splits.items() for row in chosen}
        before = len(self.left_out) + len(self.train_only)
        for group in groups:
            there = [place[name] for name in group]
            if len({split for split, _ in there}) > 1:
                drawn = [row for _, row in there if row.split != "test"]
                self._leave_out([row for _, row in there if row.split == "test"], drawn)
                if len({split for split, row in there if row.split != "test"}) > 1:
                    self._hold([row for split, row in there if row.split != "test" and split != "train"], drawn)
        return len(self.left_out) + len(self.train_only) > before

    def settle(self, rows: Iterable[SourceImage], groups: Iterable[Sequence[str]]) -> None:
        """The same before any split is made, whatever the splits will take: an image that has an equal is never drawn
        for validation or test. `groups` are of all `rows`."""
        of = {row.name: row for row in rows}
        for group in groups:
            there = [of[name] for name in group]
            drawn = [row for row in there if row.split != "test"]
            if drawn:
                self._leave_out([row for row in there if row.split == "test"], drawn)
            if len(drawn) > 1:
                self._hold(drawn, drawn)

    def print_line(self) -> None:
        """How many were found, if any."""
        counted = (
            (len(self.left_out), "of the images that the source keeps apart equal others and are left out", "left out"),
            (len(self.train_only), "stay in training with images that they equal", "held"),
        )
        if said := [f"{n} {words} ({self._first[kind]})" for n, words, kind in counted if n]:
            print(f"equal images: {', '.join(said)}")

    def _leave_out(self, rows: Sequence[SourceImage], others: Sequence[SourceImage]) -> None:
        if rows:
            self._first.setdefault("left out", _example(rows[0], others))
            self.left_out |= {row.name for row in rows}

    def _hold(self, rows: Sequence[SourceImage], others: Sequence[SourceImage]) -> None:
        self._first.setdefault("held", _example(rows[0], others))
        self.train_only |= {row.name for row in rows}


def _example(row: SourceImage, others: Sequence[SourceImage]) -> str:
    other = next(o for o in others if o.name != row.name)
    return f"{printable(row.path)} = {printable(other.path)}"
