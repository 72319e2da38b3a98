"""The declaration of several trackers at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from urepa.core.declared_keys import part
from urepa.core.errors import UserError

if TYPE_CHECKING:
    from urepa.runs.trackers.several_sender import SeveralSenders


@dataclass
class Several:
    """Each tracker gets a copy of metrics.jsonl; none waits for another."""

    _target_: str = "urepa.runs.trackers.several.Several"
    trackers: dict[str, Any] = part("the trackers, by name", {})

    def prepare(self) -> None:
        for one in self.trackers.values():
            one.prepare()

    def check_trusted(self, folder: Path) -> None:
        for one in self.trackers.values():
            one.check_trusted(folder)

    def check_place(self, folder: Path) -> None:
        for one in self.trackers.values():
            one.check_place(folder)

    def show_command(self) -> str | None:
        """That of the first one that has any."""
        return next((command for one in self.trackers.values() if (command := one.show_command())), None)

    def build(self, *, folder: Path, name: str, params: dict[str, Any], run_tags: dict[str, str]) -> SeveralSenders:
        """Raises UserError if there is no tracker, or if two of one kind would share a cursor's file."""
        from urepa.runs.trackers.several_sender import SeveralSenders

        kinds = {type(one) for one in self.trackers.values()}
        if not kinds or len(kinds) < len(self.trackers):
            raise UserError(
                "tracking=several needs trackers, each of another kind: +tracking@tracking.trackers.NAME=NAME of "
                "conf/tracking for each"
            )
        known: dict[str, Any] = {"folder": folder, "name": name, "params": params, "run_tags": run_tags}
        return SeveralSenders([one.build(**known) for one in self.trackers.values()])
