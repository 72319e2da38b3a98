"""The protocol of a run: the data on which it was measured, and how. Runs are compared only if their protocols
agree."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Any

from urepa.config.alterations import alters
from urepa.config.parts import SCHEMAS
from urepa.core.comparability import EVERYTHING
from urepa.core.declared_keys import TAP, TIME, keys_of
from urepa.reports.comparison.comparable import CONTENT_OF_TRAINING
from urepa.reports.comparison.read_runs import as_text
from urepa.runs.identity import is_identity

TAPS = "loss.taps."
WEIGHTS_FILE = ".weights_file."  # prefix of a weights file's properties in a summary
ROUNDING = 1e-9


@dataclass(frozen=True, order=True)
class Setting:
    """A setting's value as written, and its meaning for its own run. `aligned`: whether it is the tap that the run
    aligns. `shares`: its position as a share of the objective's time, known to `resolution`. So `tap: ${aligned_tap:}`
    and `timestep: ${time_at:0.5}` agree in runs with different taps and objectives. Weights are compared by `digest` if
    both have one, wherever their files are."""

    value: str
    aligned: bool = False
    shares: tuple[float, ...] = ()
    resolution: float = 0.0
    digest: str = ""

    def __str__(self) -> str:
        return f"{self.value} (sha256 {self.digest[:12]})" if self.digest else self.value

    def agrees(self, other: Setting) -> bool:
        """Whether the settings agree, as written or in their meaning for their runs."""
        if self.digest and other.digest:
            return self.digest == other.digest
        if self.value == other.value or (self.aligned and other.aligned):
            return True
        near = max(self.resolution, other.resolution) / 2 + ROUNDING
        both = zip(self.shares, other.shares, strict=False)
        return 0 < len(self.shares) == len(other.shares) and all(abs(a - b) <= near for a, b in both)


def protocol(config: dict[str, str], facts: dict[str, Any]) -> dict[str, Setting]:
    """The settings of validation and evaluation of a run, which must agree for runs to be compared. The summary takes
    precedence over the config: it records which images validated, and how a finished run was evaluated later."""
    evaluation = as_text({"evaluation": facts["evaluation"]}) if "evaluation" in facts else {}
    told = {k: v for k, v in config.items() if not k.startswith("evaluation")} | evaluation if evaluation else config
    declared = _declared_values(told)
    kept = {
        key: _setting(key, value, config, told.get(f"{key}_file.sha256", ""), declared.get(key))
        for key, value in told.items()
        if is_identity(key)
        and WEIGHTS_FILE not in key
        and key not in CONTENT_OF_TRAINING
        and (key.startswith("evaluation") or EVERYTHING in alters(key, told))
    }
    images = facts.get("validation_set", f"those of {config.get('data.name')}")
    return kept | {"validation images": Setting(images)}


def _declared_values(told: dict[str, str]) -> dict[str, str]:
    """The values of evaluations' settings that are declared to have a meaning for the run (`is_a`), by key."""
    found: dict[str, str] = {}
    for place, target in told.items():
        part, _, last = place.rpartition(".")
        if last == "_target_" and part.startswith("evaluation.") and target in SCHEMAS:
            found |= {key.name: key.is_a for key in keys_of(SCHEMAS[target], f"{part}.") if key.is_a is not None}
    return found


def _setting(key: str, value: str, config: dict[str, str], digest: str, is_a: str | None) -> Setting:
    if key.startswith("evaluation.") and key.endswith(".weights"):
        return Setting(value, digest=digest)
    if is_a == TAP:
        first = next((k.removeprefix(TAPS) for k in config if k.startswith(TAPS)), None)
        return Setting(value, aligned=value == first)
    if is_a == TIME:
        whole = config.get("objective.timesteps")  # a flow's time already is a share
        last_time = 1.0 if whole is None else float(whole)
        shares = tuple(time / last_time for time in _numbers(value))
        return Setting(value, shares=shares, resolution=0.0 if whole is None else 1 / last_time)
    return Setting(value)


def _numbers(text: str) -> list[float]:
    """The numbers of a text that is a number or a list of them; empty for any other text."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return []
    values = value if isinstance(value, list) else [value]
    return [float(v) for v in values] if all(isinstance(v, int | float) for v in values) else []


def differences(
    here: dict[str, Setting], there: dict[str, Setting]
) -> list[tuple[str, Setting | None, Setting | None]]:
    """The settings that do not agree, by key; None where one side lacks the setting."""
    found = []
    for key in sorted(here.keys() | there.keys()):
        own, other = here.get(key), there.get(key)
        if own is None or other is None or not own.agrees(other):
            found.append((key, own, other))
    return found


def by_part(settings: dict[str, Setting]) -> dict[str, dict[str, Setting]]:
    """A protocol's settings by part: "" for validation, and the name of each evaluation."""
    parts: dict[str, dict[str, Setting]] = {"": {}}
    for key, value in settings.items():
        group, _, rest = key.partition(".")
        if group != "evaluation":
            parts[""][key] = value
        elif rest:
            parts.setdefault(rest.partition(".")[0], {})[key] = value
    return parts
