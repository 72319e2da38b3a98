"""What optimisers and trackers declare of themselves, and what they build. See `urepa.core.protocols`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from urepa.core.descriptions import Formula
    from urepa.core.text_tables import Table


class Optimizer(Protocol):
    """How gradients become updates (urepa/training/optimizers/)."""

    # Copies of what trains, in its precision, that it keeps on the device.
    states: ClassVar[int]

    def check(self) -> None:
        """UserError where its settings do not go together."""
        ...

    def build(self, groups: Mapping[str, Sequence[Any]]) -> Any:
        """A torch.optim.Optimizer with a group for each part, whose entry `name` is the part's. Its `step` leaves
        everything as it is where its attribute `found_inf` is 1, as those of torch with fused=True do. A UserError for
        a part that it has no settings for.

        Args:
            groups: trainable parameters by part: "head", and "backbone" or "lora".
        """
        ...

    def rate(self, step: int, max_steps: int) -> float:
        """The share of the peak learning rates that holds at the update with this index, from 0 to 1."""
        ...

    def set_lr(self, optimizer: Any, step: int, max_steps: int) -> None:
        """Gives the groups of what `build` returned the learning rates of the update with this index."""
        ...

    def description(
        self, groups: Mapping[str, int], max_steps: int, clip_norm: float | None
    ) -> list[str | Formula | Table]:
        """Its name, settings and learning rates as `describe` writes them.

        Args:
            groups: the number of parameters of each group.
            max_steps: of the run.
            clip_norm: the largest norm of the gradient; None: it is not clipped.
        """
        ...


class RunSender(Protocol):
    """Sends one run's metrics.jsonl elsewhere. Training never waits for it."""

    @property
    def where(self) -> str:
        """The place, for the last lines that a run prints."""
        ...

    def start(self, data: dict[str, Any]) -> None:
        """Begins to send in the background.

        Args:
            data: the fingerprint of the data set (`urepa.data.cache.Cache.fingerprint`).
        """
        ...

    def wake(self) -> None:
        """There are new rows."""
        ...

    def has_all(self) -> bool:
        """Is this a finished run of which nothing is left to send?"""
        ...

    def close(self, status: str, artifacts: list[Path], tags: dict[str, str]) -> None:
        """Sends the rest, as far as it can be sent in time.

        Args:
            status: "FINISHED", "FAILED" or "KILLED".
            artifacts: files of the run that are copied.
            tags: what is known at the end.
        """
        ...


class Tracker(Protocol):
    """Where a run's metrics are copied to (urepa/runs/trackers/)."""

    def prepare(self) -> None:
        """Makes what runs that begin side by side share, before the first of them."""
        ...

    def check_trusted(self, folder: Path) -> None:
        """UserError where these settings, read from the run in `folder`, which may be a stranger's, would send what
        only the user may give, a password say.
        """
        ...

    def check_place(self, folder: Path) -> None:
        """UserError where the place is not the one that has the run in `folder`."""
        ...

    def show_command(self) -> str | None:
        """The command that shows the metrics there; None: there is none."""
        ...

    def build(self, *, folder: Path, name: str, params: dict[str, Any], run_tags: dict[str, str]) -> Any:
        """What sends a run's rows (`RunSender`).

        Args:
            folder, name: of the run.
            params: its config, by dotted keys.
            run_tags: what is known of it.
        """
        ...
