"""Protocols of optimisers and trackers, and of what they build. See `urepa.core.protocols`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from urepa.core.descriptions import Formula
    from urepa.core.text_tables import Table


class StopRule(Protocol):
    """The declaration of when a run ends before its last step (urepa/training/stop_rules/). It loads without torch.

    A rule decides by the run's validations alone, so that a resumed run decides alike; rank 0 decides for all ranks.
    """

    metric: Any  # the key of the validation loss by which it decides; None: it never ends a run
    control: Any  # the folder of the paired control with which it compares; None: it compares with none

    def why(self, values: Mapping[int, float], controls: Mapping[int, float]) -> str | None:
        """Why the run ends now, as a clause; None if it goes on.

        Args:
            values: the metric at each validation so far, by step.
            controls: the same of the control, of all its steps; empty without one.
        """
        ...

    def description(self) -> str:
        """A sentence in `describe`; "" for a rule that never ends a run."""
        ...


class Optimizer(Protocol):
    """The declaration of an optimiser (urepa/training/optimizers/)."""

    # Number of copies of the trainable weights, in their precision, that it keeps on the device.
    states: ClassVar[int]

    def check(self) -> None:
        """Raises UserError if its settings do not fit together."""
        ...

    def build(self, groups: Mapping[str, Sequence[Any]]) -> Any:
        """A torch.optim.Optimizer with a group for each part, whose entry `name` is the part's name. Its `step` changes
        nothing if its attribute `found_inf` is 1, like torch's optimisers with fused=True. Raises UserError for a part
        without settings.

        Args:
            groups: trainable parameters by part: "head", and "backbone" or "lora".
        """
        ...

    def rate(self, step: int, max_steps: int) -> float:
        """The share of the peak learning rates, from 0 to 1, at the update with this index."""
        ...

    def set_lr(self, optimizer: Any, step: int, max_steps: int) -> None:
        """Sets the learning rates of the update with this index in the groups of an optimiser from `build`."""
        ...

    def description(
        self, groups: Mapping[str, int], max_steps: int, clip_norm: float | None
    ) -> list[str | Formula | Table]:
        """Its name, settings and learning rates for `describe`.

        Args:
            groups: the number of parameters of each group.
            max_steps: the length of the run.
            clip_norm: the largest norm of the gradient; None: gradients are not clipped.
        """
        ...


class RunSender(Protocol):
    """Sends one run's metrics.jsonl elsewhere. Training never waits for it."""

    @property
    def where(self) -> str:
        """The destination, for the last lines of a run's output."""
        ...

    def start(self, data: dict[str, Any]) -> None:
        """Starts sending in the background.

        Args:
            data: the fingerprint of the data set (`urepa.data.cache.Cache.fingerprint`).
        """
        ...

    def wake(self) -> None:
        """Signals that there are new rows."""
        ...

    def has_all(self) -> bool:
        """Whether the run is finished and everything was sent."""
        ...

    def close(self, status: str, artifacts: list[Path], tags: dict[str, str]) -> None:
        """Sends the rest, as far as the time allows.

        Args:
            status: "FINISHED", "FAILED" or "KILLED".
            artifacts: files of the run that are copied.
            tags: what is known at the end.
        """
        ...


class Tracker(Protocol):
    """The declaration of a destination for copies of a run's metrics (urepa/runs/trackers/)."""

    def prepare(self) -> None:
        """Prepares what simultaneous runs share, before the first of them starts."""
        ...

    def check_trusted(self, folder: Path) -> None:
        """Raises UserError if these settings, read from the run in `folder`, which may be untrusted, would send data
        that only the user may give, such as a password.
        """
        ...

    def check_place(self, folder: Path) -> None:
        """Raises UserError if the destination is not the one that has the run in `folder`."""
        ...

    def show_command(self) -> str | None:
        """The command that shows the metrics there; None if there is none."""
        ...

    def build(self, *, folder: Path, name: str, params: dict[str, Any], run_tags: dict[str, str]) -> Any:
        """The sender of a run's rows (`RunSender`).

        Args:
            folder, name: of the run.
            params: its config, by dotted keys.
            run_tags: its tags.
        """
        ...
