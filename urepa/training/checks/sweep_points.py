"""Checks all runs of a `-m` command before the first one begins, so that a mistake is reported once and nothing starts.

Hydra's sweepers compose every run before they launch them, to find what does not compose (`validate_batch_is_legal`).
Here the composed configs are checked too, and runs that differ only in values are not composed anew: the values are set
in the config of the first of them, as Hydra does it.
"""

from __future__ import annotations

import functools
import pickle
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from urepa.config.command_line import parse_override
from urepa.config.conf_options import is_group
from urepa.config.launcher_schemas import LAUNCHERS, Slurm
from urepa.config.mistyped_keys import error_message
from urepa.core import progress
from urepa.core.errors import UserError
from urepa.runs.run_folder import find_name, to_plain
from urepa.training.checks.combinations import check, check_fraction, check_trainer
from urepa.training.checks.inputs import check_files, check_images, has_begun, images_of

Point = tuple[str, ...]  # the overrides of one run
SHOWN = 12  # refused runs that are named besides the first one


def with_checked_runs(main: Callable[[], None]) -> Callable[[], None]:
    """Wraps a Hydra main of `urepa.train` so that a sweep begins only if all of its runs pass their checks."""

    @functools.wraps(main)
    def command() -> None:
        composing = Sweeper.validate_batch_is_legal
        Sweeper.validate_batch_is_legal = _check_batch  # type: ignore[method-assign]
        try:
            main()
        finally:
            Sweeper.validate_batch_is_legal = composing  # type: ignore[method-assign]

    return command


def _check_batch(self: Any, batch: Sequence[Sequence[str]]) -> None:
    """In place of Sweeper.validate_batch_is_legal."""
    points = [tuple(overrides) for overrides in batch]
    mistakes = find_mistakes(self.hydra_context.config_loader, self.config, points)
    if mistakes:
        raise UserError(_sentence(points, mistakes))


def find_mistakes(loader: Any, master: DictConfig, points: Sequence[Point]) -> dict[int, str]:
    """The error message of each run that would be refused, by its index in the sweep.

    Args:
        loader: Hydra's config loader. master: the sweep's config, with its launcher. points: the overrides of each run.
    """
    mistakes: dict[int, str] = {}
    checked: dict[bytes, str] = {}  # by `images_of`
    classes: dict[bytes, int] = {}  # by `data`
    shared = set(points[0]).intersection(*points)
    shapes = [_without_values(point, shared) for point in points]
    first = {shape: i for i, shape in reversed([*enumerate(shapes)])}
    order = sorted(range(len(points)), key=lambda i: first[shapes[i]])  # equal shapes follow each other
    config: DictConfig | None = None
    before: Point | None = None
    with progress.bar(order, desc="checking", unit="run", leave=False, disable=not sys.stderr.isatty()) as each:
        for i in each:
            try:
                same = config if shapes[i] == before else None
                config = _compose(loader, master, points[i], shapes[i], same)
                before = shapes[i]
                _check_run(_plain(config, classes), points[i], master, checked)
            except UserError as error:
                mistakes[i] = str(error)
            except (HydraException, OmegaConfBaseException) as error:
                mistakes[i] = error_message(error, master.hydra.job.config_name, list(points[i]))
    return mistakes


def _check_run(config: dict[str, Any], point: Point, master: DictConfig, checked: dict[bytes, str]) -> None:
    """Raises UserError as `urepa.train` would for this run. `checked`: what was found of images, "" for nothing."""
    check(config, list(point))
    launcher = master.hydra.launcher
    if LAUNCHERS.get(launcher.get("_target_")) is Slurm:
        world = launcher.gpus * launcher.nodes
        check_trainer(config["trainer"], world)
        check_fraction(config, world)
    if has_begun(config, Path(master.hydra.sweep.dir) / find_name(list(point), config["seed"])):
        return
    if (images := images_of(config)) not in checked:
        try:
            check_images(config)
            checked[images] = ""
        except UserError as error:
            checked[images] = str(error)
    if checked[images]:
        raise UserError(checked[images])
    check_files(config)


# --- compositions ---------------------------------------------------------------------------------------------


def _compose(loader: Any, master: DictConfig, point: Point, shape: Point, same: DictConfig | None) -> DictConfig:
    """The config of a run. `same`: that of a run that differs from it only in the overrides that are not in `shape`."""
    if same is not None:
        try:
            for override in point:
                if override not in shape:
                    parsed = _parsed(override)
                    OmegaConf.update(same, parsed.key_or_group, parsed.value(), merge=True)
            return same
        except OmegaConfBaseException:
            pass  # composed below, for Hydra's own error
    config: DictConfig = loader.load_sweep_config(master, list(point))
    with open_dict(config):
        del config["hydra"]
    return config


def _plain(config: DictConfig, classes: dict[bytes, int]) -> dict[str, Any]:
    """`to_plain`. Where the number of classes is counted in the images, it is counted once for runs with the same
    `data`, and kept in `classes`."""
    unresolved = OmegaConf.to_container(config.data, enum_to_str=True)
    assert isinstance(unresolved, dict)
    if not OmegaConf.is_interpolation(config.data, "num_classes"):
        return to_plain(config)
    images = pickle.dumps(unresolved)
    if images not in classes:
        plain = to_plain(config)
        classes[images] = plain["data"]["num_classes"]
        return plain
    config.data.num_classes = classes[images]
    try:
        return to_plain(config)
    finally:
        config.data.num_classes = unresolved["num_classes"]


def _without_values(point: Point, shared: Collection[str]) -> Point:
    """The run's overrides without those that only set a value of a key that the sweep varies. `shared`: the overrides
    that all runs have."""
    keys = [_key(override) for override in point]
    return tuple(o for o in point if o in shared or not _sets_a_value(o, keys))


def _sets_a_value(override: str, keys: Sequence[str]) -> bool:
    """Whether an override sets a plain value of a key that no other override of the run (`keys`) concerns."""
    parsed, key = _parsed(override), _key(override)
    is_plain = not (parsed.is_add() or parsed.is_force_add() or parsed.is_delete() or parsed.package is not None)
    if not is_plain or is_group(key) or key.startswith("hydra") or isinstance(parsed.value(), dict):
        return False
    return sum(f"{one}.".startswith(f"{key}.") or f"{key}.".startswith(f"{one}.") for one in keys) == 1


@functools.lru_cache(maxsize=4096)
def _parsed(override: str) -> Override:
    found = parse_override(override)
    assert found is not None, "the sweeper has read it"
    return found


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


# --- messages -------------------------------------------------------------------------------------------------


def _sentence(points: Sequence[Point], mistakes: dict[int, str]) -> str:
    """The first mistake. If only some runs have it: the overrides that these have alike, and those of the others that
    are refused."""
    by_text: dict[str, list[Point]] = {}
    for i in sorted(mistakes):
        by_text.setdefault(mistakes[i], []).append(points[i])
    text, having = next(iter(by_text.items()))
    if len(having) == len(points):
        return text
    named, *others = dict.fromkeys(_named(some, points) for some in by_text.values())
    message = text if text.startswith(named) else f"{named}: {text}"
    also = f", also {'; '.join(others[:SHOWN])}{'; ...' if len(others) > SHOWN else ''}" if others else ""
    return f"{message} (no run was begun: {len(mistakes)} of {len(points)} cannot run{also})"


def _named(some: Sequence[Point], points: Sequence[Point]) -> str:
    """The overrides that some runs of a sweep have alike and not all runs have; if there are none, those of the first
    of them."""
    shared = set(points[0]).intersection(*points)
    own = [override for override in some[0] if override not in shared]
    return " ".join([override for override in own if all(override in point for point in some)] or own)
