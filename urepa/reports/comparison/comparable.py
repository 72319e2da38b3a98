"""Which values can be compared: the settings that a metric depends on, and the settings that must be equal for seeds to
be paired. Both follow from the parts' declarations (`urepa.core.comparability`).

Reasons are config keys, so that the report can name them.
"""

from __future__ import annotations

from urepa.config.alterations import alters, unpairs
from urepa.config.parts import SCHEMAS
from urepa.core.comparability import EVERY_TERM, MEANS_OVER_TIMES, NOISE_LEVELS, TERMS, TOKEN, TOTAL_BY_STEP
from urepa.reports.comparison.metric_columns import rests_on, validation_metrics
from urepa.runs.identity import is_file_of_weights, is_identity

DROPOUT, ALWAYS = "data.cfg_dropout", ("1", "1.0")  # dropout of the class, and a probability of 1 as text
# Properties of a run's training data that are not settings. Runs that differ in one did not see the same data.
CONTENT_OF_TRAINING = ("data.content.train", "data.content.samples", "data.content.latents")
OF_FACT = {"teacher.content": "teacher._target_"}  # a teacher with other weights is another teacher


def _differing(config: dict[str, str], other: dict[str, str]) -> list[str]:
    """All keys whose values differ, except those that do not make another run and where a teacher's file lies: its
    content counts (`teacher.content`)."""
    keys = [k for k in config.keys() | other.keys() if config.get(k) != other.get(k) and is_identity(k)]
    return sorted(k for k in keys if not (is_file_of_weights(k) and k.startswith("teacher.")))


def differing_keys(config: dict[str, str], other: dict[str, str], prefixes: tuple[str, ...]) -> list[str]:
    """Keys at or below one of the prefixes whose values differ."""
    below = tuple(f"{prefix}." for prefix in prefixes)
    return [k for k in _differing(config, other) if k in prefixes or k.startswith(below)]


def incomparable_keys(key: str, config: dict[str, str], baseline: dict[str, str]) -> list[str]:
    """The settings that make this arm's value of `key` incomparable with the baseline's; empty if it is comparable."""
    kind, _, rest = key.partition("/")
    if kind == "final":
        return differing_keys(config, baseline, rests_on(key))
    column = rest.split("/")[0]
    term = column.removesuffix("_by_t")
    term = TOKEN if term == "cosine" else term
    known = {metric.key: metric for metric in validation_metrics()}
    if kind not in ("train", "val") or f"val/{term}" not in known:
        return []
    by = {term, EVERY_TERM} | ({TOKEN} if term == TERMS else set())
    if term == column or column == "cosine":
        by.add(MEANS_OVER_TIMES)
    if key == "train/total":  # weighted with the λ of each step, as are the points of its curve
        by.add(TOTAL_BY_STEP)
    altering = [k for k in _differing(config, baseline) if by & alters(OF_FACT.get(k, k), config, baseline)]
    named = differing_keys(config, baseline, known[f"val/{term}"].rests_on)
    for one in (config, baseline):
        named += differing_keys(config, baseline, _all_terms_rest_on(one))
    return sorted({*altering, *named, *_by_class(config, baseline)})


def _all_terms_rest_on(config: dict[str, str]) -> tuple[str, ...]:
    """The settings on which every term of this config's loss rests, besides the loss's own."""
    return getattr(SCHEMAS.get(config.get("loss._target_", "")), "terms_rest_on", ())


def _by_class(config: dict[str, str], baseline: dict[str, str]) -> list[str]:
    """The dropout key if exactly one of the two configs always trains without the class. Losses with and without the
    class are different quantities."""
    never, never_there = (of.get(DROPOUT) in ALWAYS for of in (config, baseline))
    return [DROPOUT] if never != never_there else []


def noise_schedule_keys(config: dict[str, str], baseline: dict[str, str]) -> list[str]:
    """The differing settings of β or of the flow's path, with which the same timestep has another noise level."""
    return [k for k in _differing(config, baseline) if NOISE_LEVELS in alters(k, config, baseline)]


def unpairing_keys(config: dict[str, str], baseline: dict[str, str]) -> list[str]:
    """The settings that give an arm other data, noise or times than the baseline of the same seed."""
    return [k for k in _differing(config, baseline) if k in CONTENT_OF_TRAINING or unpairs(k, config, baseline)]
