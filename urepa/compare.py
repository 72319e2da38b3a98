"""`python -m urepa.compare`: compares the arms of a study: their differences, with intervals and tests."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from urepa.cli import CONF, prepare, run_command
from urepa.config.ranges import check_numbers
from urepa.core.errors import UserError
from urepa.core.escaping import printable
from urepa.core.files import check_file_target, check_folder_target, write_whole
from urepa.core.one_line_errors import one_line_mistakes
from urepa.runs.mlflow_store import require_there
from urepa.runs.run_folder import parse_overrides, to_plain

NAMED_AT_MOST = 4
SELECTIONS = ("experiment", "ablation", "tag", "ids")


@hydra.main(config_path=CONF, config_name="compare", version_base="1.3")
def main(config: DictConfig) -> None:
    """Prints the tables, and writes the report, the tables as CSV, Markdown and LaTeX, and the figures."""
    from hydra.core.hydra_config import HydraConfig

    with one_line_mistakes():
        settings = to_plain(config)
        given = parse_overrides(list(HydraConfig.get().overrides.task))
        if settings["store"] is not None and "runs" in given:
            raise UserError("store= and runs= are two sources: give one of them")
        if settings["publish"] and settings["store"] is None:
            raise UserError("publish=true puts the report into the MLflow store that it is of: give store=URI")
        check_folder_target("report", Path(settings["report"]))
        if settings["store"] is not None:
            require_there(settings["store"])
        if settings["out"] is not None:
            check_file_target("out", Path(settings["out"]))
        check_numbers({key: settings[key] for key in ("at_step", "watch_every")})
        check_watch(settings, given)
        if settings["watch"]:
            watch(settings)
            stop_reloading(settings)
        compare(settings)


def check_watch(settings: dict[str, Any], given: dict[str, str]) -> None:
    """Raises UserError for keys that do not go with watching, or have no effect without it."""
    if "watch_every" in given and not settings["watch"]:
        raise UserError("watch_every has no effect without watch=true; give that too")
    if settings["publish"] and settings["watch"]:
        raise UserError("publish=true would publish a report every time: give it without watch=true, after the runs")


def watch(settings: dict[str, Any]) -> None:
    """Renews the report until all runs are finished, or Ctrl-C. Between two runs of a sweep all runs that are there are
    finished too, so it ends only when they still are at the next renewal. The caller writes the last report, without
    reloading, and prints the tables."""
    from urepa.reports.comparison.waiting_page import progress_line

    finished_before: set[str] | None = None
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            runs = renew(settings)
            finished = {run.id for run in runs if run.status == "finished"}
            print(f"{time.strftime('%H:%M:%S')}  {progress_line(runs)}  {settings['report']}/index.html", flush=True)
            if len(finished) == len(runs) > 0 and finished == finished_before:
                return
            finished_before = finished
            time.sleep(settings["watch_every"])


def stop_reloading(settings: dict[str, Any]) -> None:
    """The page, as it is, without reloading itself: also if the last comparison is not possible."""
    from urepa.reports.comparison.waiting_page import reload_tag

    index = Path(settings["report"]) / "index.html"
    if index.is_file():
        write_whole(index, index.read_text().replace(reload_tag(settings["watch_every"]), "", 1))


def renew(settings: dict[str, Any]) -> list[Any]:
    """Writes the report of the runs as they are now, with a page that reloads itself. Returns the runs. Where they
    cannot be compared yet, the page says why and where each of them is."""
    from urepa.reports.comparison.waiting_page import waiting_page, with_reload

    folder = Path(settings["report"])
    runs: list[Any] = []
    try:
        runs, foreign = chosen_runs(settings)
        results, sentences, pictures = compared(settings, runs, foreign)
        write_report(results, sentences, folder, *pictures, reload=settings["watch_every"])
    except UserError as error:
        folder.mkdir(parents=True, exist_ok=True)
        print(printable(str(error)))
        write_whole(folder / "index.html", with_reload(waiting_page(str(error), runs), settings["watch_every"]))
    return runs


def compared(
    settings: dict[str, Any], chosen: list[Any], foreign: list[Path]
) -> tuple[Any, list[str], tuple[Any, Any, Any]]:
    """The results of the chosen runs, the sentences beside them, and grids, strips and evaluations' pictures."""
    from urepa.reports.comparison.arms import group_runs
    from urepa.reports.comparison.equal_steps import at_step, at_step_sentence, early_sentences
    from urepa.reports.comparison.results import summarise

    runs, step = started_runs(chosen), settings["at_step"]
    if step is not None:
        runs = [at_step(run, step) for run in runs]
    results = summarise(group_runs(runs, settings["order"], settings["baseline"], settings["names"]))
    grids, strips, pictures, lost = load_pictures(settings["store"], results.study)
    notes = [] if step is None else [at_step_sentence(step)]
    notes += early_sentences([item.run for item in results.study.apart])
    return (
        results,
        [*notes, *notices(results), *empty_runs_note(chosen), *other_folders_note(foreign), *lost],
        (grids, strips, pictures),
    )


def compare(settings: dict[str, Any]) -> None:
    """Loads the chosen runs, compares them and writes all outputs."""
    from urepa.reports.comparison import tables
    from urepa.reports.comparison.as_json import as_json

    results, sentences, pictures = compared(settings, *chosen_runs(settings))
    folder = Path(settings["report"])
    write_report(results, sentences, folder, *pictures)
    print(tables.terminal(results, shutil.get_terminal_size((140, 40)).columns))
    for sentence in sentences:
        print(printable(sentence))
    if settings["out"] is not None:
        write_whole(Path(settings["out"]), json.dumps(as_json(results), indent=1))
    if settings["publish"]:
        from urepa.reports.comparison.read_mlflow import publish

        print(f"\n  MLflow   {publish(settings['store'], results, folder)}")
    print(f"\n  report   {folder / 'index.html'}\n  tables   {folder}/table.csv, table.md, table.tex")
    print(f"  figures  {folder}/figures/")


def chosen_runs(settings: dict[str, Any]) -> tuple[list[Any], list[Path]]:
    """The requested runs with their curves, and the folders whose config is not that of a run."""
    from urepa.reports.comparison.read_runs import find_all, load_curves, select

    asked = settings["select"]
    wanted = (_as_list(asked["experiment"]), _as_list(asked["ablation"]), asked["tag"], _as_list(asked["ids"]))
    if settings["store"] is None:
        runs, foreign = find_all(settings["runs"])
        return load_curves(select(runs, *wanted)), foreign
    from urepa.reports.comparison.read_mlflow import find_stored, load_histories
    from urepa.runs.mlflow_store import open_existing

    client = open_existing(settings["store"])
    return load_histories(client, select(find_stored(client), *wanted)), []


def load_pictures(store: str | None, study: Any) -> tuple[Any, Any, Any, list[str]]:
    """The arms' grids of samples, strips over steps and evaluations' pictures, from folders or artifacts, and a
    sentence if they cannot be read."""
    from urepa.core.look_sheets import FOLDER
    from urepa.reports.comparison.evaluation_pictures import evaluation_pictures
    from urepa.reports.comparison.look_strips import strips_of
    from urepa.reports.comparison.sample_grids import find_in_folder, grids_of, list_in_folder, read_file

    if store is None:
        strips = strips_of(study, lambda run: find_in_folder(run, FOLDER), read_file)
        pictures = evaluation_pictures(study, list_in_folder, read_file)
        return grids_of(study, find_in_folder, read_file), strips, pictures, []
    from urepa.reports.comparison.read_mlflow import stored_pictures
    from urepa.runs.mlflow_store import open_existing

    grids, strips, pictures, lost = stored_pictures(open_existing(store), study)
    return grids, strips, pictures, [lost] if lost else []


def started_runs(runs: list[Any]) -> list[Any]:
    """The runs that have logged a step, as far as they can be read. Raises UserError if there are none."""
    found = [run for run in runs if run.curves or run.damage]
    if not found:
        raise UserError(f"none of the {len(runs)} runs has logged a step yet: {runs[0].name}")
    return found


def empty_runs_note(runs: list[Any]) -> list[str]:
    """A sentence on folders with a config but no logged step, which a refused command leaves."""
    empty = [run.name for run in runs if not run.curves and not run.damage]
    if not empty:
        return []
    return [f"Not counted as runs, as they have logged no step (refused, or just begun): {_count_and_names(empty)}."]


def other_folders_note(folders: list[Path]) -> list[str]:
    """A sentence on folders whose config.yaml is not a run's, and one on those of runs with undeclared parts."""
    from urepa.reports.comparison.read_runs import GIVE_FOLDER, has_other_parts, printable_path

    others = [folder for folder in folders if has_other_parts(folder)]
    names, with_others = (
        [printable_path(str(folder)) for folder in folders if (folder in others) == own] for own in (False, True)
    )
    notes = [f"Passed over, as their config.yaml is not a run's: {_count_and_names(names)}."] if names else []
    if with_others:
        notes.append(
            f"Passed over, as they name parts of another package: {_count_and_names(with_others)}; {GIVE_FOLDER}."
        )
    return notes


def _count_and_names(names: list[str]) -> str:
    """The number of names, and the first of them."""
    return f"{len(names)} ({', '.join(names[:NAMED_AT_MOST])}{', ...' if len(names) > NAMED_AT_MOST else ''})"


def _as_list(value: Any) -> list[str]:
    if value is None:
        return []
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]


def notices(results: Any) -> list[str]:
    """Sentences that belong next to the verdict: arms of several lengths, or EMA weights that still lag."""
    from urepa.reports.comparison.findings import ema_lag_sentences

    said = []
    runs = [run for row in results.rows for run in row.arm.runs.values()]
    if len(lengths := Counter(row.arm.config["trainer.max_steps"] for row in results.rows)) > 1:
        arms = ", ".join(f"{n} of {steps} steps" for steps, n in sorted(lengths.items(), key=lambda i: int(i[0])))
        said.append(
            f"The arms are not equally long ({arms}): their differences are those of length too. Choose runs with "
            "experiment=, ablation=, tag= or ids= to leave some out."
        )
    if not any(metric.key.startswith("val/") for metric in results.metrics):
        said.append(
            "No run has logged a validation (val/...), so no loss is compared: costs and training curves are shown."
        )
    return said + mixed_code_note(runs) + [f"{sentence}." for sentence in ema_lag_sentences(results)]


def mixed_code_note(runs: list[Any]) -> list[str]:
    """A sentence on evaluations that were made with different versions of the code."""
    by: dict[str, set[str]] = {}
    for run in runs:
        done = run.facts.get("evaluated_by", dict.fromkeys(run.facts.get("evaluation", {}), run.code[-1].version))
        for name, code in done.items():
            by.setdefault(name, set()).add(code)
    several = sorted(name for name, codes in by.items() if len(codes) > 1)
    if not several:
        return []
    codes = "; ".join(sorted(set().union(*(by[name] for name in several))))
    return [
        f"More than one version of the code evaluated these runs ({', '.join(several)}: {codes}): where it differs, "
        "so may the values. `python -m urepa.evaluate run=FOLDER` evaluates a run again."
    ]


def write_report(
    results: Any,
    sentences: list[str],
    folder: Path,
    grids: Any = None,
    strips: Any = None,
    pictures: Any = (),
    reload: int | None = None,
) -> None:
    """Writes index.html, table.*, figures/* and, if there are correlations, predictors.csv. `reload`: seconds after
    which the page reloads itself."""
    from urepa.reports.comparison import tables
    from urepa.reports.comparison.as_csv import as_csv
    from urepa.reports.comparison.draw_panels import draw_all
    from urepa.reports.comparison.figures import panels
    from urepa.reports.comparison.page import page
    from urepa.reports.comparison.predictors import predictors, predictors_csv, predictors_text
    from urepa.reports.comparison.ranking import ranking_text
    from urepa.reports.comparison.waiting_page import with_reload

    (folder / "figures").mkdir(parents=True, exist_ok=True)
    drawn = draw_all(panels(results))
    remove_old_figures(folder, {figure.panel.name for figure in drawn})
    for figure in drawn:
        write_whole(folder / "figures" / f"{figure.panel.name}.png", figure.png)
        write_whole(folder / "figures" / f"{figure.panel.name}.pdf", figure.pdf)
    write_whole(folder / "table.csv", as_csv(results))
    found = predictors(results)
    markdown = tables.markdown(results, sentences) + ranking_text(results) + predictors_text(results, found)
    write_whole(folder / "table.md", markdown)
    if found:
        write_whole(folder / "predictors.csv", predictors_csv(found))
    else:
        (folder / "predictors.csv").unlink(missing_ok=True)  # of an earlier report
    write_whole(folder / "table.tex", tables.latex(results))
    html = page(results, drawn, sentences, grids, strips, pictures, found)
    write_whole(folder / "index.html", html if reload is None else with_reload(html, reload))


def remove_old_figures(folder: Path, names: set[str]) -> None:
    """Removes the figures of an earlier report that this one lacks. Other files are kept."""
    index = folder / "index.html"
    before = re.findall(r'<figure id="figure-([a-z0-9_]+)"', index.read_text()) if index.is_file() else []
    for name in set(before) - names:
        for ending in (".png", ".pdf"):
            (folder / "figures" / f"{name}{ending}").unlink(missing_ok=True)


def with_select_prefix(argument: str) -> str:
    """`experiment=x` as `select.experiment=x`, because Hydra would treat the former as the choice of a config group."""
    return f"select.{argument}" if argument.partition("=")[0] in SELECTIONS else argument


if __name__ == "__main__":
    prepare()
    sys.argv[1:] = [with_select_prefix(argument) for argument in sys.argv[1:]]
    run_command(main, "compare")
