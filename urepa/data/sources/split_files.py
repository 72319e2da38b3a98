"""Files that are named by split: train-00000.parquet, test-00000.parquet; shard-00000.tar where there is no split."""

from __future__ import annotations

from pathlib import Path

from urepa.core.escaping import printable

# how the names of a split's files begin
SPLITS = {"train": "train", "test": "test", "validation": "val"}


def files_by_split(root: Path, ending: str) -> tuple[dict[str, list[Path]], list[Path]]:
    """The files of "train", "test" and "validation", as far as there are some, and the files of other names. Where no
    file is named by a split, all are for training."""
    files = sorted(file for file in root.glob(f"*{ending}") if file.is_file())
    found = {split: [f for f in files if f.name.startswith(begin)] for split, begin in SPLITS.items()}
    named = {split: own for split, own in found.items() if own}
    if not named:
        return ({"train": files} if files else {}), []
    return named, [file for file in files if not file.name.startswith(tuple(SPLITS.values()))]


def others_in_words(root: Path, ending: str) -> str:
    """What `files_by_split` finds of other names, in words; empty where there is nothing."""
    others = files_by_split(root, ending)[1]
    if not others:
        return ""
    return f"{len(others)} file{'s' * (len(others) != 1)} of no split's name ({printable(others[0].name)})"
