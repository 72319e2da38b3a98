"""A user's own package: the files of docs/own-package.md, as real commands with a folder beside the checkout."""

from __future__ import annotations

import ast
import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import forks
import pytest
import yaml
from mistakes.parts import TINY

pytestmark = pytest.mark.long

PAGE = Path(__file__).resolve().parents[1] / "docs" / "own-package.md"
FILES = dict(re.findall(r"`((?:my_parts|configs)/\S+)`:\n\n```\w+\n(.*?)```", PAGE.read_text(), re.DOTALL))
OWN = ("--config-dir", "configs")
RUNS = ("outputs/base/seed0", "outputs/arm/seed0", "outputs/hog/seed0")
SMALL = [one for one in TINY if not one.startswith(("head.", "evaluation", "trainer.max_steps"))]
TRAIN = [*SMALL, "trainer.max_steps=12", "trainer.validate_every=6", "evaluation=tap_rank"]


def write(folder: Path) -> Path:
    """Writes the page's files, and a torch that cannot be imported."""
    for name, text in FILES.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (folder / "without").mkdir()
    (folder / "without" / "torch.py").write_text("raise AssertionError('torch is imported')\n")
    return folder


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("own"))


def call(work: Path, module: str, *arguments: str, more: str = "") -> subprocess.CompletedProcess[str]:
    """Runs `python -m MODULE ARGUMENTS` in that folder, which is on PYTHONPATH. `more`: a folder in it that comes first
    on PYTHONPATH, with a process that has imported nothing."""
    path = [str(work / more), str(work)] if more else [str(work)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*path, os.environ.get("PYTHONPATH", "")])}
    environment |= {"COLUMNS": "100"}
    what = ["-m", module, *arguments]
    if not more:
        return forks.run(what, work, env=environment)
    command = [sys.executable, *what]
    return subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)


def refused(work: Path, module: str, *arguments: str, more: str = "without") -> str:
    """The one line with which the command ends."""
    done = call(work, module, *arguments, more=more)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


def test_the_page_has_every_file() -> None:
    assert len(FILES) == 9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("typed", "said"), re.findall(r"^\| `((?:head|teacher)=[^`]+)` \| `([^`]+)` \|$", PAGE.read_text(), re.MULTILINE)
)
def test_the_mistakes_of_the_page(work: Path, typed: str, said: str) -> None:
    """Each without torch. `...` matches anything."""
    pattern = ".+".join(map(re.escape, said.split("...")))
    assert re.fullmatch(pattern, refused(work, "urepa.train", *OWN, *typed.split()))


YAML_MISTAKES = [
    ("configs/head/norm.yaml", "groups: 8", "groups: many", "head/norm.yaml: head.groups: give a whole number"),
    ("configs/head/norm.yaml", "groups: 8", "groupz: 8", "head/norm.yaml: there is no key 'head.groupz'"),
    ("configs/head/norm.yaml", "groups: 8", "", "head.groups must be given"),
    ("configs/head/norm.yaml", "my_parts.norm_head.", "no_parts.", "there is no package 'no_parts' to import: install"),
    ("configs/head/norm.yaml", "NormHead", "NormHaed", "my_parts.norm_head has no NormHaed (did you mean 'NormHead'?)"),
    ("my_parts/norm_head.py", "@dataclass\n", "", "my_parts.norm_head.NormHead is not a declaration"),
    (
        "my_parts/norm_head.py",
        "def build",
        "def built",
        "NormHead is no head, as it has no build; urepa.core.protocols",
    ),
    (
        "my_parts/norm_head.py",
        "in_width, out_width):",
        "in_width, out_width, grid):",
        "NormHead.build asks for grid, which urepa.core.protocols.Head.build is not given; see there",
    ),
    ("my_parts/norm_head.py", "import ClassVar", "import ClasVar", "cannot be imported: ImportError"),
    ("my_parts/norm_head.py", 'setting("added to the variance", 1e-5, ge=0, le=1)', "1e-5", "says no meaning"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("file", "before", "after", "said"), YAML_MISTAKES)
def test_mistakes_in_files(tmp_path: Path, file: str, before: str, after: str, said: str) -> None:
    changed = write(tmp_path) / file
    assert before in changed.read_text()
    changed.write_text(changed.read_text().replace(before, after))
    assert said in refused(tmp_path, "urepa.train", *OWN, "head=norm")


FORGETFUL = {
    "term": (
        "from urepa.method.alignment_terms import AlignmentTerm",
        "AlignmentTerm",
        "formula, words, which urepa.method.alignment_terms.AlignmentTerm leaves to its subclasses; define them",
    ),
    "schedule": (
        "from urepa.method.schedules.shape_math import Decay",
        "Decay",
        "words, which urepa.method.schedules.shape_math.Decay leaves to its subclasses; define it",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", FORGETFUL)
def test_a_part_that_lacks_a_member_of_its_base_is_refused(tmp_path: Path, kind: str) -> None:
    """By every command that is given its folder, without torch."""
    line, base, said = FORGETFUL[kind]
    target = "my_parts.forgetful.Mine"
    text = (
        f"from dataclasses import dataclass\n{line}\n@dataclass\nclass Mine({base}):\n    _target_: str = '{target}'\n"
    )
    (write(tmp_path) / "my_parts" / "forgetful.py").write_text(text)
    (tmp_path / "configs" / kind).mkdir(exist_ok=True)
    (tmp_path / "configs" / kind / "mine.yaml").write_text(f"_target_: {target}\n")
    assert refused(tmp_path, "urepa.train", *OWN) == f"{target} does not define {said}"


@pytest.mark.slow
def test_an_undeclared_part_is_refused(work: Path) -> None:
    """Nothing is imported from it, and a missing folder is reported."""
    line = refused(work, "urepa.train", "head._target_=my_parts.norm_head.NormHead")
    assert "is not a declared part: name it in a file of FOLDER/head, and give --config-dir FOLDER" in line
    assert "there is no folder" in refused(work, "urepa.train", "--config-dir", "elsewhere")


@pytest.mark.slow
def test_each_parts_kind_follows_from_its_place_in_the_config(tmp_path: Path) -> None:
    """For any group, for a part inside a part, and for a file at a config's root; not for urepa's or Hydra's own."""
    classes = {"One": "EfficientNetLite0", "Two": "Pixels", "Three": "GeneratedImages", "Four": "AdamW"}
    classes["Five"] = "EfficientNetLite0"
    text = "from dataclasses import dataclass\n"
    text += "from urepa.evaluation.encoders.pixels import Pixels\n"
    text += "from urepa.evaluation.images.generated_images import GeneratedImages\n"
    text += "from urepa.models.teachers.efficientnet_lite0 import EfficientNetLite0\n"
    text += "from urepa.training.optimizers.adamw import AdamW\n"
    text += "".join(
        f"@dataclass\nclass {name}({parent}):\n    _target_: str = 'other.parts.{name}'\n"
        for name, parent in classes.items()
    )
    evaluation = {"here": {"_target_": "urepa.X", "encoders": {"a": {"_target_": "other.parts.Two"}}}}
    files = {
        "teacher/one": {"_target_": "other.parts.One"},
        "evaluation/two": evaluation | {"there": {"images": {"_target_": "other.parts.Three"}}},
        "ablation/four": {"optimizer": {"_target_": "other.parts.Four"}},
        "teacher/five": {"_target_": "urepa.Y", "teachers": {"b": {"_target_": "other.parts.Five"}}},
        "hydra/launcher/six": {"_target_": "other.parts.Six"},
    }
    for name, content in files.items():
        file = tmp_path / "configs" / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(yaml.safe_dump(content))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "parts.py").write_text(text)
    code = (
        "from pathlib import Path; from urepa.config.own_package import load; from urepa.config.parts import KINDS\n"
        "load([Path('configs').absolute()])\n"
        "print([(k, n.rpartition('.')[2]) for k, found in KINDS.items() for n in found if n.startswith('other.')])"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    expected = [("teacher", "Five"), ("teacher", "One"), ("optimizer", "Four"), ("images", "Three"), ("encoder", "Two")]
    assert sorted(ast.literal_eval(done.stdout)) == sorted(expected), done.stderr


@pytest.fixture(scope="module")
def trained(work: Path) -> Path:
    """Twelve steps without the arm, with it, and with the teacher."""
    arms: tuple[list[str], ...] = ([], ["+ablation=norm_head"], ["teacher=hog"])
    for folder, arm in zip(RUNS, arms, strict=True):
        given = [one for one in TRAIN if not (arm == ["teacher=hog"] and one.startswith("teacher."))]
        done = call(work, "urepa.train", *OWN, *arm, *given, f"hydra.run.dir={folder}")
        assert done.returncode == 0, done.stderr
    return work


@pytest.mark.slow
def test_training_stores_the_parts(trained: Path) -> None:
    config = yaml.safe_load((trained / RUNS[1] / "config.yaml").read_text())
    assert config["head"] == {"_target_": "my_parts.norm_head.NormHead", "groups": 8, "eps": 1e-5}
    assert config["evaluation"]["tap_rank"]["tap"] == "mid"


@pytest.mark.slow
def test_compare_shows_the_metric_as_declared(trained: Path) -> None:
    done = call(trained, "urepa.compare", *OWN)
    assert done.returncode == 0, done.stderr
    assert "rank of the tap\u00a0↑" in done.stdout
    assert "head: Conv → NormHead" in done.stdout
    rows = list(csv.DictReader((trained / "report" / "table.csv").open()))
    assert {"baseline", "norm_head"} <= {value for row in rows for value in row.values()}


@pytest.mark.slow
def test_describe_and_help_show_them(trained: Path) -> None:
    text = call(trained, "urepa.describe", *OWN, "+ablation=norm_head", "evaluation=tap_rank").stdout
    assert "GroupNorm in 8 groups and one 1×1 convolution, on the teacher's grid" in text
    assert "TapRank, with tap = mid" in text
    text = call(trained, "urepa.train", *OWN, "head=norm", "--help", more="without").stdout
    assert re.search(r"head\.groups +8 +groups of channels that are normalised together \(1 or more\)", text)
    assert "norm_head" in text
    assert "tap_rank" in text
    text = call(trained, "urepa.describe", *OWN, "teacher=hog").stdout
    assert "histograms of 9 orientations of the gradient in each cell. Its tokens are computed once" in text


@pytest.mark.slow
def test_a_teachers_tokens_are_what_the_formula_says(trained: Path) -> None:
    """For the images that the run trained on, read back from its store: numpy's gradients, binned one by one."""
    code = """
import json, numpy as np, torch
from my_parts.hog import Hog
images = torch.rand(3, 1, 64, 64, generator=torch.Generator().manual_seed(0)).expand(3, 3, 64, 64)
tokens = Hog(image_size=64, grid=[4, 4]).build().tokens(images).x_BND.numpy()
for image, token_ND in zip(images.mean(1).double().numpy(), tokens):
    dy, dx = np.gradient(image)
    bins = np.minimum((np.arctan2(dy, dx) / np.pi % 1.0 * 9).astype(int), 8)
    for place in range(16):
        rows, columns = (slice(16 * k, 16 * k + 16) for k in divmod(place, 4))
        sums = np.bincount(bins[rows, columns].ravel(), np.hypot(dy, dx)[rows, columns].ravel(), 9) / 256 + 1e-6
        assert np.abs(token_ND[place] - sums / np.linalg.norm(sums)).max() < 1e-4, (place, token_ND[place], sums)
print("agree")
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(trained), os.environ.get("PYTHONPATH", "")])}
    done = forks.run_code(code, [], trained, environment)
    assert done.stdout == "agree\n", done.stderr
    stores = {path.parent.name for path in trained.glob("data/*/**/hog9*")} | {p.name for p in trained.rglob("*hog9*")}
    assert stores, "a store of its tokens, named by the teacher"


@pytest.mark.slow
def test_a_stored_run_is_read_with_the_folder_and_refused_without(trained: Path) -> None:
    _, arm, hog = RUNS
    for module, arguments in (
        ("urepa.evaluate", [f"run={arm}"]),
        ("urepa.export", [f"run={arm}", "out=exported"]),
        ("urepa.train", [f"resume={arm}", "trainer.max_steps=14"]),
    ):
        assert "give --config-dir FOLDER, whose files name it" in refused(trained, module, *arguments, more="")
        done = call(trained, module, *OWN, *arguments)
        assert done.returncode == 0, done.stderr
    for module, arguments in (
        ("urepa.evaluate", [f"run={hog}", "evaluation=alignment"]),
        ("urepa.train", [f"resume={hog}", "trainer.max_steps=14"]),
    ):
        done = call(trained, module, *OWN, *arguments)
        assert done.returncode == 0, done.stderr
    assert "give --config-dir FOLDER, whose files name them" in refused(trained, "urepa.compare", more="")


@pytest.mark.slow
def test_a_sweep_runs_from_a_copy_that_has_the_folders_files(trained: Path) -> None:
    """Each run is a process that finds the package by the paths in the copy."""
    arguments = [*SMALL, "trainer.max_steps=2", "evaluation=none", "head=norm", "head.groups=4,8"]
    done = call(trained, "urepa.train", *OWN, "-m", *arguments, "hydra/launcher=local")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done ") == 2
    missing = call(trained, "urepa.train", *OWN, "-m", "+ablation=glob(nrm*)")
    assert "nrm* matches no option of ablation" in missing.stderr
    assert "did you mean 'norm_head'?" in missing.stderr


@pytest.mark.slow
def test_a_study_gives_its_jobs_the_folder(trained: Path) -> None:
    arguments = ["arms=baseline,norm_head", "seeds=0", "evaluate=tap_rank", "dry_run=true", *SMALL]
    done = call(trained, "launchers.ablation_grid", *OWN, *arguments)
    assert done.returncode == 0, done.stderr
    assert "2 arms x 1 seeds: 2 runs" in done.stdout
