"""Keeps equal images in one split, so that no validation or test image is also trained on.

If equal images would be in several splits, those from the publisher's test split are left out, and those drawn for
validation or test from the training images return to training. Each is replaced by the next image of its class.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from urepa.core.escaping import printable
from urepa.data.sources.source_image import SourceImage


class EqualImages:
    """The equal images found so far: the names of images that are left out, and of those restricted to training."""

    def __init__(self) -> None:
        self.left_out: set[str] = set()
        self.train_only: set[str] = set()
        self._first: dict[str, str] = {}  # a printable example of each kind

    def keep_apart(self, splits: Mapping[str, Sequence[SourceImage]], groups: Iterable[Sequence[str]]) -> bool:
        """Records which images have to move. Returns whether there are any; the splits must then be made again.

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
        """As `keep_apart`, before any split is made and for any split: an image with an equal one is never drawn for
        validation or test. `groups` are the groups of equal images among `rows`."""
        of = {row.name: row for row in rows}
        for group in groups:
            there = [of[name] for name in group]
            drawn = [row for row in there if row.split != "test"]
            if drawn:
                self._leave_out([row for row in there if row.split == "test"], drawn)
            if len(drawn) > 1:
                self._hold(drawn, drawn)

    def print_line(self) -> None:
        """Prints how many were found, if any."""
        counted = (
            (len(self.left_out), "of the source's held-out images equal others and are left out", "left out"),
            (len(self.train_only), "stay in training with images equal to them", "held"),
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
