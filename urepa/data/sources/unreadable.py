"""Images that cannot be read: all are listed before any network runs, and are left out or raise an error."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from urepa.core.errors import UserError
from urepa.core.escaping import printable
from urepa.core.files import write_whole

FILE = "unreadable.json"
NAMED = 10  # of those that are printed; the file lists all


def report(found: Mapping[str, str], of: int, max_skipped: float, folder: Path) -> None:
    """Writes the images that cannot be read (a sentence by sample id; `of` is the number of all images) to
    FOLDER/unreadable.json and prints the first. Raises UserError if they exceed the fraction `max_skipped`; a fraction
    above 0 always allows one image."""
    file = folder / FILE
    if not found:
        file.unlink(missing_ok=True)  # written by an earlier call
        return
    write_whole(file, json.dumps(dict(found), indent=1))
    print(f"{len(found)} of {of} images cannot be read:")
    for sentence in list(found.values())[:NAMED]:
        print(f"  {printable(sentence)}")
    if len(found) > NAMED:
        print(f"  and {len(found) - NAMED} more")
    if len(found) > (max(1, max_skipped * of) if max_skipped > 0 else 0):
        first = printable(next(iter(found.values())))
        raise UserError(
            f"{len(found)} of {of} images cannot be read (first: {first}; all are listed in {file}): repair or "
            f"remove them, or leave them out with data.max_skipped={_share(len(found), of)}"
        )
    print(f"they are left out (data.max_skipped={max_skipped:g}) and listed in {file}")


def _share(found: int, of: int) -> float:
    """The smallest fraction, in thousandths, that allows this many."""
    return next(n / 1000 for n in range(math.ceil(1000 * found / of), 1002) if n / 1000 * of >= found)
