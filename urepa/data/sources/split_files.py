"""Files named by split: train-00000.parquet, test-00000.parquet; shard-00000.tar if there are no splits."""

from __future__ import annotations

from pathlib import Path

from urepa.core.escaping import printable

# the prefix of the file names of each split
SPLITS = {"train": "train", "test": "test", "validation": "val"}


def files_by_split(root: Path, ending: str) -> tuple[dict[str, list[Path]], list[Path]]:
    """The files of "train", "test" and "validation" (splits without files are left out), and the files with other
    names. If no file is named by a split, all are for training."""
    files = sorted(file for file in root.glob(f"*{ending}") if file.is_file())
    found = {split: [f for f in files if f.name.startswith(begin)] for split, begin in SPLITS.items()}
    named = {split: own for split, own in found.items() if own}
    if not named:
        return ({"train": files} if files else {}), []
    return named, [file for file in files if not file.name.startswith(tuple(SPLITS.values()))]


def others_in_words(root: Path, ending: str) -> str:
    """A text on the files that `files_by_split` assigns to no split; empty if there are none."""
    others = files_by_split(root, ending)[1]
    if not others:
        return ""
    return f"{len(others)} file{'s' * (len(others) != 1)} whose name begins with no split ({printable(others[0].name)})"
