"""The title of the report, and the line below it."""

from __future__ import annotations

from urepa.config.parts import SCHEMAS
from urepa.reports.comparison.read_runs import Run
from urepa.reports.comparison.results import Results

NONE = "none"  # the teacher tag of a run without a teacher
NAMED_AT_MOST = 3  # data sets, backbones or teachers in the title


def title(results: Results) -> str:
    """The title: data, backbone and teacher of the runs."""
    runs = [run for row in results.rows for run in row.arm.runs.values()]
    teachers = [_part(run, "teacher") for run in runs if run.tags.get("teacher") != NONE]
    return " · ".join(
        [
            _join_names([_part(run, "data") for run in runs], "data sets"),
            _join_names([_part(run, "backbone") for run in runs], "backbones"),
            _join_names(teachers or ["no teacher"], "teachers"),
        ]
    )


def _part(run: Run, kind: str) -> str:
    """The name of the run's data, backbone or teacher: its tag, which runs of earlier versions may lack."""
    if kind in run.tags:
        return run.tags[kind]
    if kind == "data":
        return run.config["data.name"]
    target = run.config[f"{kind}._target_"]
    return str(getattr(SCHEMAS.get(target), "family", target.rpartition(".")[2]))


def _join_names(names: list[str], kind: str) -> str:
    """The distinct names, or their number if there are many."""
    different = list(dict.fromkeys(names))
    return " + ".join(different) if len(different) <= NAMED_AT_MOST else f"{len(different)} {kind}"


def subtitle(results: Results) -> str:
    """Experiments, numbers of arms and runs, seeds, baseline and code."""
    study = results.study
    runs = [run for arm in study.arms for run in arm.runs.values()]
    seeds = sorted({run.seed for run in runs})
    experiments = ", ".join(sorted({run.experiment for run in runs}))
    parts = [
        f"{experiments}: {_count(len(study.arms), 'arm')}, {_count(len(runs), 'run')}",
        f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}",
        f"baseline: {study.baseline.label} ({study.why_baseline})",
        f"code {runs[0].code[0]}",
        f"{_count(len(study.apart), 'run')} set apart",
    ]
    return "; ".join(parts)


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'s' * (n != 1)}"
