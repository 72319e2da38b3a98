"""The run whose data an evaluation uses: its stored config, and whether its data fit the model of another run. Loads
without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from urepa.config.declared import declaration_of
from urepa.core.errors import UserError
from urepa.core.part_names import CLASS
from urepa.core.track_protocols import Track, condition_widths
from urepa.runs.run_folder import RunFolder, no_run

ABSENT = "nothing"


def named_run(run: str | None, place: str) -> str:
    """How messages name the run: the key and its value."""
    return f"{place}run={run}"


def other_config(run: str | None, place: str) -> dict[str, Any]:
    """The config of the run, with which its track neither makes nor copies caches. Raises UserError if it is not the
    folder of a run.

    Args:
        place: the prefix of keys on the command line, "evaluation.NAME.".
    """
    if run is None:
        raise UserError(f"name the run whose data are used: {place}run=outputs/NAME/seed0")
    config = RunFolder(Path(run)).stored_config()
    if config is None:
        raise UserError(no_run(f"{place}run", Path(run)))
    track: Track = declaration_of(config["data"])
    return config | {"data": config["data"] | {**track.without_making, **track.without_copies}}


def check_data(named: str, there: dict[str, Any], here: dict[str, Any]) -> None:
    """Raises UserError if the track of the config `there` does not fit the model of the config `here`, or has no
    caches."""
    other: Track = declaration_of(there["data"])
    refuse_differing(named, facts_of_track(other), facts_of_track(declaration_of(here["data"])))
    try:
        other.check_inputs(batch_size=1)
    except UserError as error:
        raise UserError(f"{named}: {error}") from error


def facts_of_track(track: Any) -> dict[str, Any]:
    """What the model of a run requires of data: the shapes of x0, how images become x0, and the parts of conditions
    with their widths; the number of classes only if the model has a vector for each class."""
    widths = dict(condition_widths(track))
    keys = [key for key in track.of_images if key != "num_classes" or CLASS in widths]
    shapes = sorted({tuple(shape) for shape in track.latent_shapes})
    own = {f"data.{key}": getattr(track, key) for key in keys if key != "latent_shape"}
    return {"x0": " or ".join("x".join(map(str, shape)) for shape in shapes), "conditions": widths} | own


def refuse_differing(named: str, there: dict[str, Any], here: dict[str, Any]) -> None:
    """Raises UserError if facts of both runs' data differ."""
    differing = [
        f"{key} is {there.get(key, ABSENT)} there and {here.get(key, ABSENT)} here"
        for key in sorted(there.keys() | here.keys())
        if there.get(key) != here.get(key)
    ]
    if differing:
        raise UserError(
            f"{named} has data that do not fit this run's model ({'; '.join(differing)}); choose one that agrees"
        )
