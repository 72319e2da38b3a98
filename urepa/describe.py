"""`python -m urepa.describe +experiment=...`: writes the methodology section from the composed config and its counts.
Builds and downloads nothing, and reads only the step of a warm start."""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from urepa.cli import CONF, is_sweep, prepare, run_command
from urepa.core.errors import UserError
from urepa.core.files import check_folder_target, write_whole
from urepa.core.one_line_errors import one_line_mistakes
from urepa.plan import check_measured, run_overrides
from urepa.runs.run_folder import own_overrides, parse_overrides, to_plain
from urepa.training.checks.combinations import check
from urepa.training.checks.inputs import check_plan_inputs


@hydra.main(config_path=CONF, config_name="describe", version_base="1.3")
def main(config: DictConfig) -> None:
    """Prints Markdown; with out=FOLDER also writes methodology.md and methodology.tex."""
    from hydra.core.hydra_config import HydraConfig

    overrides = list(HydraConfig.get().overrides.task)
    with one_line_mistakes():
        parts = to_plain(config)
        check(parts, run_overrides(overrides))
        if parts["out"] is not None:
            check_folder_target("out", Path(parts["out"]))
        measured = check_measured(parts)
        check_plan_inputs(parts)
        from urepa.core.code_version import code_state
        from urepa.costs.estimate import Device, plan
        from urepa.reports.description.markdown_and_latex import as_latex, as_markdown
        from urepa.reports.description.methodology import methodology
        from urepa.reports.description.subject import subject_of

        planned = plan(parts, Device(**parts["device"]), measured)
        code = code_state()
        version = f"commit {code['git_commit'][:9]} ({code['code_state']})"
        origin = f"Experiment {name_of(run_overrides(overrides))}; code: {version}."
        sections = methodology(subject_of(parts, planned), origin)
        print(as_markdown("Methodology", sections))
        if parts["out"] is not None:
            folder = Path(parts["out"])
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(folder / "methodology.md", as_markdown("Methodology", sections))
            write_whole(folder / "methodology.tex", as_latex("Methodology", sections))
            print(f"written: {folder / 'methodology.md'} and methodology.tex beside it", file=sys.stderr)


def name_of(overrides: list[str]) -> str:
    """The experiment, its arm, and the overrides of the command line."""
    given = parse_overrides(overrides)
    arm = [f"ablation {given['ablation']}"] if "ablation" in given else []
    return ", ".join([given.get("experiment", "quickstart"), *arm, *own_overrides(overrides)])


def describe() -> None:
    """The entry of the command. Refuses -m, because a text describes one run."""
    if is_sweep(sys.argv[1:]):
        raise UserError("describe writes about one run: leave -m out, and call it for each")
    main()


if __name__ == "__main__":
    prepare()
    run_command(describe, "describe")
