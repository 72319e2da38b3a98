"""Excludes runs from the comparison: unfinished runs, runs measured with another protocol, runs of another version of
the code, and older repetitions of the same run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, replace

from urepa.core.code_version import same_code
from urepa.core.errors import UserError
from urepa.reports.comparison.equal_steps import NOT_THERE
from urepa.reports.comparison.evaluation_protocol import Setting, by_part, differences, protocol
from urepa.reports.comparison.read_runs import Run
from urepa.runs.identity import is_file_of_weights, is_identity
from urepa.runs.summary import early_text

ABSENT = "—"
SHOWN_REASONS = 3

Parts = dict[str, tuple[tuple[str, Setting], ...]]  # the parts of a protocol, by name


@dataclass(frozen=True)
class Apart:
    """A run that is excluded from all means, and the reason."""

    run: Run
    reason: str


def identity(config: dict[str, str], seed: bool = False) -> dict[str, str]:
    """The settings that define an arm. Evaluation settings are not among them: they belong to the protocol, because a
    run may be evaluated after its training."""
    return {
        k: v
        for k, v in config.items()
        if is_identity(k)
        and not is_file_of_weights(k)
        and k.partition(".")[0] != "evaluation"
        and (seed or k != "seed")
    }


CONTENTS = (  # a fact, the settings that usually determine it, and the setting that is added if they do not
    ("train", "data.", "data.content.train"),
    ("held_out", "data.", "data.content.held_out"),
    ("samples", "data.", "data.content.samples"),
    ("latents", "data.", "data.content.latents"),
    ("latents.held_out", "data.", "data.content.held_out_latents"),
    ("teacher", "teacher.", "teacher.content"),
    ("warm_start", "warm_start.", "warm_start.content"),
)


def add_digests(runs: list[Run]) -> list[Run]:
    """The runs, with digests of their data, their teacher's weights and those they started from added as settings if
    runs with the same config have different digests. `data.images`, `data.root` and a folder with other runs' weights
    do not distinguish runs, but their contents do."""
    for fact, prefix, key in CONTENTS:
        there: dict[Hashable, set[str]] = {}
        of = {run.id: run.facts.get("content", {}).get(fact) for run in runs}
        for run in runs:
            part = {k: v for k, v in run.config.items() if k.startswith(prefix)}
            settings = tuple(sorted(identity(part).items()))
            known = of[run.id]
            there.setdefault(settings, set()).update([] if known is None else [known])
        if any(len(found) > 1 for found in there.values()):
            runs = [replace(run, config=run.config | {key: of[run.id] or "unknown"}) for run in runs]
    return runs


def select_finished(runs: list[Run]) -> tuple[list[Run], list[Apart]]:
    """The runs that finished, were not extended to more steps, and have readable metrics."""
    usable, apart = [], []
    for run in runs:
        if run.damage:
            apart.append(Apart(run, f"damaged: {run.damage}"))
        elif NOT_THERE in run.facts:
            apart.append(Apart(run, run.facts[NOT_THERE]))
        elif run.status != "finished":
            apart.append(Apart(run, f"{run.status}: its last logged step is {run.last_step}"))
        elif run.facts.get("extended_from") is not None:
            steps = run.facts["extended_from"]
            apart.append(
                Apart(run, f"extended from {steps} steps: its learning rate is not that of a run of this length")
            )
        elif run.facts.get("ended_early"):
            apart.append(
                Apart(run, f"{early_text(run.facts)}: its last values are of fewer steps; at_step=N compares at step N")
            )
        else:
            usable.append(run)
    return usable, apart


def select_one_protocol(runs: list[Run], leading: list[Run]) -> tuple[list[Run], list[Apart]]:
    """The runs with the most common protocol: that of the leading run with which most leading runs agree over all parts
    together; on a tie, that of the newest. A run that lacks an evaluation still agrees; its cells are empty. For a part
    that the leading run lacks, the most common settings among the runs that agree otherwise are used."""
    of: dict[str, Parts] = {
        run.id: {part: tuple(sorted(found.items())) for part, found in by_part(protocol(run.config, run.facts)).items()}
        for run in runs
    }
    reference: Parts = {}
    for among in (leading, runs):
        while more := [
            run for run in among if of[run.id].keys() - reference.keys() and not _why(of[run.id], reference)
        ]:
            reference = of[_most_common(more, of).id] | reference
    usable, apart = [], []
    for run in runs:
        if why := _why(of[run.id], reference):
            rest = f", and {len(why) - SHOWN_REASONS} more" if len(why) > SHOWN_REASONS else ""
            apart.append(Apart(run, f"another validation set or protocol: {'; '.join(why[:SHOWN_REASONS])}{rest}"))
        else:
            usable.append(run)
    return usable, apart


def _why(parts: Parts, reference: Parts) -> list[str]:
    """The differences between a run's parts and those of the reference, in words."""
    return [
        f"{key} is {here if here else ABSENT}, not {there if there else ABSENT}"
        for part in sorted(parts.keys() & reference.keys())
        for key, here, there in differences(dict(parts[part]), dict(reference[part]))
    ]


def _most_common(runs: list[Run], of: dict[str, Parts]) -> Run:
    """The run with which most runs agree in their parts; on a tie, the newest."""
    counts = Counter(item for run in runs for item in of[run.id].items())
    agreeing = {
        (part, own): sum(n for (p, o), n in counts.items() if p == part and not differences(dict(own), dict(o)))
        for part, own in counts
    }
    return max(runs, key=lambda run: (sum(agreeing[item] for item in of[run.id].items()), run.started))


def select_one_code(runs: list[Run], leading: list[Run]) -> tuple[list[Run], list[Apart]]:
    """The runs of the version of the code that trained most of the leading runs; on a tie, of the newest. A run belongs
    to a version if one version trained all of its steps. Two unknown versions are never taken as the same."""
    of = {run.id: run.code for run in runs}
    mixed = {id_ for id_, code in of.items() if not all(same_code(code[0], other) for other in code[1:])}
    whole = [run for run in leading if run.id not in mixed] or [run for run in runs if run.id not in mixed]
    if not whole:
        raise UserError(f"none of the {len(runs)} finished runs was trained by one version of the code throughout")
    versions = list(dict.fromkeys(code[0] for code in of.values()))
    like = {(a, b): same_code(a, b) for a in versions for b in versions}
    counts = Counter(of[run.id][0] for run in whole)
    agreeing = {version: sum(n for other, n in counts.items() if like[version, other]) for version in counts}
    newest = max(whole, key=lambda run: (agreeing[of[run.id][0]], run.started))
    usable, apart = [], []
    for run in runs:
        if run.id in mixed:
            apart.append(Apart(run, f"trained by several versions of the code: {_course(run)}"))
        elif run is newest or like[of[run.id][0], of[newest.id][0]]:
            usable.append(run)
        else:
            apart.append(Apart(run, f"another version of the code: {of[run.id][0]}, not {of[newest.id][0]}"))
    return usable, apart


def _course(run: Run) -> str:
    """The versions of the code that trained a run, with the step from which each one did."""
    stretches = zip(run.code, run.facts["code"], strict=True)
    return "; ".join(f"{code} from step {stretch['from_step']}" for code, stretch in stretches)


def select_newest(runs: list[Run]) -> tuple[list[Run], list[Apart]]:
    """The newest of the runs with the same config and seed."""
    newest: dict[Hashable, Run] = {}
    for run in sorted(runs, key=lambda run: run.started):
        newest[tuple(sorted(identity(run.config, seed=True).items()))] = run
    kept = {run.id for run in newest.values()}
    apart = [
        Apart(run, "an older run of the same arm and seed: the newest is used") for run in runs if run.id not in kept
    ]
    return [run for run in runs if run.id in kept], apart
