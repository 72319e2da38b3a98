"""The command that a finished run suggests as the next one."""

from __future__ import annotations

import shlex
from typing import Any

from urepa.config.command_line import quote_argument
from urepa.config.declared import declaration_of
from urepa.config.override_text import as_typed
from urepa.core.ema_initial_weights import lag_ahead
from urepa.core.nested_dicts import flatten
from urepa.core.run_protocols import Tracker
from urepa.core.track_protocols import Track
from urepa.runs.identity import differences, is_identity
from urepa.runs.run_folder import IMAGES, Names
from urepa.training.checks.combinations import composed

SWEEP = ("loss.lambda_max=0,0.5", "head.depth=1,2")
STEPS = "trainer.max_steps", "50"  # for a run that does not set them itself
SWEPT = ("loss", "head")
NOT_IN_NAMES = ("data.", "trainer.", "tracking.")  # prefixes of keys that are not in folder names


def next_command(names: Names, config: dict[str, Any]) -> str:
    """After a run of the quickstart, a short sweep on the same data with the run's overrides. After any other run, or
    if its overrides are already those of a sweep, the tracker's command."""
    overrides = sweep_overrides(names, config)
    if overrides is not None:
        return shlex.join(["python", "-m", "urepa.train", "-m", *SWEEP, *overrides])
    tracker: Tracker = declaration_of(config["tracking"])
    return tracker.show_command() or "python -m urepa.train --help"


def sweep_overrides(names: Names, config: dict[str, Any]) -> list[str] | None:
    """Overrides of a short sweep based on a run of the quickstart: the run's own and, if the averages would lag in so
    few steps, their warm-up. None if there is no such sweep: the run changes what would be swept, or its overrides
    cannot be recovered from its name."""
    own = dict(override.split("=", 1) for override in names.overrides if "=" in override)
    if (names.experiment, names.ablation) != ("quickstart", "baseline"):
        return None
    if "" in own.values() or any(key.partition(".")[0] in SWEPT for key in own):  # "" is the value of a dropped key
        return None
    if IMAGES in own:
        own[IMAGES] = str(config["data"]["images"])  # a name contains only its last component
    named = composed(_overrides(own))
    if named is None or _is_other(named, config):  # names contain no `+`
        return None
    own |= _unnamed(config, named)
    own.setdefault(*STEPS)
    whole = composed(_overrides(own))
    if whole is None:
        return None
    trainer = whole["trainer"]
    if lag_ahead(trainer["ema_decay"], trainer["max_steps"], trainer["ema_warmup"]):
        own.setdefault("trainer.ema_warmup", "true")
    return [as_typed(f"{key}={value}") for key, value in own.items()]


def _overrides(own: dict[str, str]) -> list[str]:
    return [quote_argument(as_typed(f"{key}={value}")) for key, value in own.items()]


def _is_other(named: dict[str, Any], config: dict[str, Any]) -> bool:
    """Whether the named overrides compose another run than this one, or one with another tracker. The evaluation is not
    compared, because `urepa.evaluate` may have replaced it."""
    left_out = {"seed": None, "arm": None, "evaluation": None}
    return bool(differences(config | left_out, named | left_out)) or (
        named["tracking"]["_target_"] != config["tracking"]["_target_"]
    )


def _unnamed(config: dict[str, Any], there: dict[str, Any]) -> dict[str, str]:
    """The plain values of this run that are not in names (for example the folder of its caches) and differ from those
    of its named overrides. Only keys that both configs have are compared."""
    track: Track = declaration_of(config["data"])
    left_out = {IMAGES, *(f"data.{key}" for key in track.without_making)}  # an evaluation sets these itself
    here, default = flatten(config), flatten(there)
    return {
        key: str(value)
        for key, value in here.items()
        if key.startswith(NOT_IN_NAMES) and not is_identity(key) and key not in left_out and key in default
        if isinstance(value, str | int | float) and value != default[key]
    }
