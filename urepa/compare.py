"""`python -m urepa.compare`: which choice mattered, by how much, and whether it is noise."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from urepa.doors import CONF, one_line_mistakes, open_door, prepare
from urepa.errors import UserError
from urepa.files import write_whole
from urepa.runs import parse_overrides, plain

SELECTIONS = ("experiment", "ablation", "tag", "ids")


@hydra.main(config_path=CONF, config_name="compare", version_base="1.3")
def main(config: DictConfig) -> None:
    """Prints the tables; writes the report, the tables as CSV, Markdown and LaTeX, and the figures."""
    from hydra.core.hydra_config import HydraConfig

    with one_line_mistakes():
        settings = plain(config)
        given = parse_overrides(list(HydraConfig.get().overrides.task))
        if settings["store"] is not None and "runs" in given:
            raise UserError("store= and runs= are two sources: give one of them")
        compare(settings)


def compare(settings: dict[str, Any]) -> None:
    """From the chosen runs to everything that is written."""
    from urepa.code_state import same_code
    from urepa.comparison import tables
    from urepa.comparison.arms import group
    from urepa.comparison.results import summarise

    runs = chosen_runs(settings)
    results = summarise(group(runs, settings["order"], settings["baseline"], same_code))
    sentences = notices(results)
    folder = Path(settings["report"])
    write_report(results, sentences, folder)
    print(tables.terminal(results, shutil.get_terminal_size((140, 40)).columns))
    for sentence in sentences:
        print(sentence)
    if settings["out"] is not None:
        write_whole(Path(settings["out"]), json.dumps(tables.as_json(results), indent=1))
    print(f"\n  report   {folder / 'index.html'}\n  tables   {folder}/table.csv, table.md, table.tex")
    print(f"  figures  {folder}/figures/")


def chosen_runs(settings: dict[str, Any]) -> list[Any]:
    """The runs that were asked for, with their curves."""
    from urepa.comparison.runs import find_folders, select, with_rows

    asked = settings["select"]
    wanted = (_list(asked["experiment"]), _list(asked["ablation"]), asked["tag"], _list(asked["ids"]))
    if settings["store"] is None:
        return with_rows(select(find_folders(settings["runs"]), *wanted))
    from urepa.comparison.store import find_stored, open_store, with_histories

    client = open_store(settings["store"])
    return with_histories(client, select(find_stored(client), *wanted))


def _list(value: Any) -> list[str]:
    if value is None:
        return []
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]


def notices(results: Any) -> list[str]:
    """What must be said first: too little to compare."""
    said = []
    runs = [run for row in results.rows for run in row.arm.runs.values()]
    if len(runs) == 1:
        said.append("There is one run only, so nothing is compared: its values are shown as they are.")
    elif len(results.rows) == 1:
        said.append(f"There is one arm only, of {len(runs)} seeds: its values are shown, nothing is compared.")
    if not any(metric.key.startswith("val/") for metric in results.metrics):
        said.append(
            "No run has logged a validation (val/...), so no loss is compared: costs and training curves are shown."
        )
    return said


def write_report(results: Any, sentences: list[str], folder: Path) -> None:
    """index.html, table.*, figures/*."""
    from urepa.comparison import tables
    from urepa.comparison.drawing import draw_all
    from urepa.comparison.figures import panels
    from urepa.comparison.page import page

    (folder / "figures").mkdir(parents=True, exist_ok=True)
    drawn = draw_all(panels(results))
    for figure in drawn:
        write_whole(folder / "figures" / f"{figure.panel.name}.png", figure.png)
        write_whole(folder / "figures" / f"{figure.panel.name}.pdf", figure.pdf)
    write_whole(folder / "table.csv", tables.csv_text(results))
    write_whole(folder / "table.md", tables.markdown(results))
    write_whole(folder / "table.tex", tables.latex(results))
    write_whole(folder / "index.html", page(results, drawn, sentences))


def in_full(argument: str) -> str:
    """`experiment=x` as `select.experiment=x`: Hydra would take the bare one for the choice of a config group."""
    return f"select.{argument}" if argument.partition("=")[0] in SELECTIONS else argument


if __name__ == "__main__":
    prepare()
    sys.argv[1:] = [in_full(argument) for argument in sys.argv[1:]]
    open_door(main, "compare")
