"""The notebooks run from top to bottom, and are stored in git without their outputs."""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest

import urepa
from urepa.runs.run_folder import run_name

pytestmark = pytest.mark.long

ROOT = Path(urepa.__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
Compose = Callable[..., dict[str, Any]]

# a smaller quickstart; its name on disk is that of its command
SMALL = (
    "backbone.block_out_channels=[32,32,32]",
    "backbone.cross_attention_dim=32",
    "data.limit=100",
    "data.validation_images=20",
    "data.test_images=20",
    "evaluation.samples.per_class=1",
    "evaluation.samples.sampler_steps=2",
    "evaluation.samples.knn=1",
    "head.depth=1",
    "loss.warmup_steps=4",
    "tracking=none",
    "trainer.batch_size=8",
    "trainer.max_steps=6",
    "trainer.log_every=2",
    "trainer.threads=1",
    "trainer.validation_group=10",
)

FEW_STEPS = ("trainer.max_steps=3", "trainer.validate_every=3", "trainer.checkpoint_every=3", "trainer.threads=1")


def code(notebook: Any) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_is_short_and_without_outputs_and_imports_urepa(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert 5 <= len(cells) <= 8
    assert [(cell.outputs, cell.execution_count) for cell in cells] == [([], None)] * len(cells)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert cells[0].metadata.tags == ["parameters"]
    imported = {
        name.split(".")[0]
        for source in code(notebook)
        for node in ast.walk(ast.parse(source))
        for name in ([a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", "")])
    }
    assert "urepa" in imported
    assert str(Path.home()) not in path.read_text()


def test_nothing_imports_them() -> None:
    names = ["01_quickstart", "02_compare", "03_alignment", "04_families", "05_nanodit", "06_flextok"]
    assert [p.stem for p in NOTEBOOKS] == names
    sources = [*(ROOT / "urepa").rglob("*.py"), *(ROOT / "launchers").rglob("*.py")]
    assert not [p for p in sources if "notebooks" in p.read_text()]


def executed(name: str, folder: Path, **parameters: Any) -> Any:
    """The notebook after a run with other parameters. A cell that raises fails the test."""
    from nbclient import NotebookClient

    (path,) = (p for p in NOTEBOOKS if p.stem.endswith(name))
    notebook = nbformat.read(path, as_version=4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    known = {node.targets[0].id for node in ast.parse(first.source).body if isinstance(node, ast.Assign)}  # type: ignore[attr-defined]
    assert parameters.keys() <= known, "the notebook has no such parameter"
    first.source += "\n" + "\n".join(f"{key} = {value}" for key, value in parameters.items())
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": folder}}).execute()
    return notebook


def shown(notebook: Any, kind: str) -> list[str]:
    """All outputs of a MIME type; printed text counts as text/plain and comes first."""
    outputs = [out for cell in notebook.cells if cell.cell_type == "code" for out in cell.outputs]
    printed = [out.text for out in outputs if out.get("name") == "stdout" and kind == "text/plain"]
    return printed + [out.data[kind] for out in outputs if kind in out.get("data", {})]


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_the_quickstart_and_alignment_notebooks_run(tmp_path: Path) -> None:
    """The first notebook trains a small run, and the third opens it."""
    work = f"Path({str(tmp_path)!r})"
    overrides = [*SMALL, "data.root=data/digits"]
    quickstart = executed("quickstart", tmp_path, WORK=work, OVERRIDES=overrides)
    run = Path("outputs") / run_name(overrides, 0)
    assert json.loads((tmp_path / run / "summary.json").read_text())["step"] == 6
    assert len(shown(quickstart, "image/png")) == 3, "losses, samples and a curve"
    (methodology,) = shown(quickstart, "text/markdown")
    assert "Training takes 6 updates of 8 samples" in methodology

    alignment = executed("alignment", tmp_path, WORK=work, RUN=repr(str(run)), IMAGES=20)
    assert len(shown(alignment, "image/png")) == 3
    first, cosines, neighbours = shown(alignment, "text/plain")[:3]
    assert "step 6, 20 images, tokens (20, 16, 1280) on a grid of (4, 4)" in first
    cosine, floor = (float(part.split()[-1]) for part in cosines.strip().split(";"))
    assert -0.2 < cosine < floor < 1, "six steps do not beat the constant token"
    by_space = ast.literal_eval(neighbours.splitlines()[-1])
    assert by_space["teacher"] == 1.0
    assert 0 <= by_space["head"] < 1


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_the_compare_notebook_runs(compose: Compose, tmp_path: Path) -> None:
    """λ × depth over made-up run folders: the grid, and the same table as the command's."""
    import sys

    sys.path.insert(0, str(Path(__file__).parent / "reports" / "comparison"))
    from made_up import changed, write_run

    config = compose("+experiment=cifar10", "data.source=folder")
    for lam in (0.0, 0.25, 0.5):
        for depth in (1, 2):
            for seed in (0, 1, 2):
                own = changed(config, {"loss.lambda_max": lam, "head.depth": depth, "seed": seed})
                folder = tmp_path / "outputs" / f"cifar10,head.depth={depth},loss.lambda_max={lam}" / f"seed{seed}"
                last = {"val/x0_error": 0.3 - 0.1 * lam + 0.001 * seed * (depth + lam)}
                write_run(folder, own, experiment="cifar10", last=last)
    compare = executed("compare", tmp_path, RUNS=f"Path({str(tmp_path / 'outputs')!r})")
    assert "18 runs, 6 arms, 0 runs set apart" in shown(compare, "text/plain")[0]
    assert "baseline: depth=1, lambda_max=0 (of the controls with λ = 0 the one" in shown(compare, "text/plain")[0]
    (table,) = shown(compare, "text/markdown")
    (finding,) = (line for line in table.splitlines() if line.startswith("- X0 error:"))
    assert "differs in 4 of 5 comparisons after Holm" in finding
    assert len(shown(compare, "image/png")) == 2, "the grid and the intervals"


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_the_families_notebook_runs(tmp_path: Path) -> None:
    """Two families, and in place of a published size that of the experiment."""
    from captioned_photos import write_captioned_photos

    photos = write_captioned_photos(tmp_path / "photos", 12)
    counts = ["data.validation_images=12", "data.test_images=6"]
    small = {"PUBLISHED": ["family_smoke"], "DATA": [f"data.images={photos}"], "SIZE": counts}
    families = executed("families", tmp_path, FAMILIES=["sd3", "sana"], **small)
    printed = "".join(shown(families, "text/plain"))
    assert "sd3  SD3  FlowShifted" in printed
    assert "sd3: 2,407,360 parameters, x0 [48, 16, 16], tap [64, 128] on (8, 8), head [64, 112]" in printed
    assert "tap [256, 128] on (16, 16), head [64, 112]" in printed, "Sana's patches have one latent each"
    assert "family_smoke: 2 million parameters" in printed


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_the_nanodit_notebook_runs(tmp_path: Path) -> None:
    from captioned_photos import nanodit_overrides, write_captioned_photos

    photos = write_captioned_photos(tmp_path / "photos", 12)
    _, images, *overrides = nanodit_overrides(photos, tmp_path / "data", None, *FEW_STEPS)
    assert images == f"data.images={photos}"
    places = {"WORK": f"Path({str(tmp_path)!r})", "PHOTOS": f"Path({str(photos)!r})"}
    nanodit = executed("nanodit", tmp_path, **places, OVERRIDES=overrides, STEPS=2)
    assert len(shown(nanodit, "image/png")) == 2, "the four modes and the grid of scales"
    assert "a temple, square" in "".join(shown(nanodit, "text/plain"))


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_the_flextok_notebook_runs(tmp_path: Path, small_flextok: list[str]) -> None:
    overrides = [*small_flextok[1:], "loss=none", "trainer.max_steps=6", "trainer.threads=1"]
    left_out = ("teacher.", "head.", "trainer.max_steps=10")
    overrides = [text for text in overrides if not text.startswith(left_out)]
    flextok = executed("flextok", tmp_path, WORK=f"Path({str(tmp_path)!r})", OVERRIDES=overrides, IMAGES=10, STEPS=2)
    assert len(shown(flextok, "image/png")) == 2, "decoded images and their errors"
    printed = "".join(shown(flextok, "text/plain"))
    assert "10 images, 8 codes each" in printed
    by_count = ast.literal_eval("{" + printed.partition("{")[2].partition("}")[0] + "}")
    assert list(by_count) == [0, 1, 2, 4, 8]
    assert all(0 < error < 1 for error in by_count.values())
