"""`python -m urepa.evaluate evaluation=generation`, killed while it generates images, gives the same numbers, and they
reach every record under their encoder's name."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import forks
from test_evaluate import evaluate, evaluations, summary
from workspace import Workspace, assert_tracked_once, one_line_error, query

# kills itself while the n-th batch of images is written beside its place
KILLED = """
import os, signal, sys
count, replace = int(sys.argv.pop(1)), os.replace
def replacing(source, target):
    global count
    count -= "batch_" in str(target)
    if count == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
os.replace = replacing
from urepa.cli import run_command, prepare
from urepa.evaluate import main
prepare()
run_command(main, "evaluate")
"""
SMALL = (
    "evaluation=[generation,inception]",
    "evaluation.generation.images.count=20",
    "evaluation.generation.images.steps=2",
    "evaluation.generation.images.batch_size=4",
    "evaluation.generation.reference_images=20",
    "evaluation.generation.subset=20",
    "evaluation.generation.kid_subsets=5",
    "evaluation.generation.kid_subset_size=10",
    "evaluation.inception.reference_images=20",
    "evaluation.inception.subset=20",
    "evaluation.inception.kid_subset_size=10",
    "evaluation.generation.encoders.efficientnet_lite0.image_size=64",
    "evaluation.generation.encoders.efficientnet_lite0.grid=[2,2]",
)


def batches(run: Path) -> dict[str, tuple[int, bytes]]:
    files = run.glob("generated/*/batch_*.safetensors")
    return {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in files}


def test_an_evaluation_killed_while_generating_gives_the_same_values(copied: Workspace) -> None:
    run = copied.run
    again = run.parents[1] / "again" / "seed0"
    shutil.copytree(run, again)
    said = one_line_error(evaluate(copied, run, *SMALL, code=1))
    assert said.startswith(
        "evaluation.inception: there is no pt_inception-2015-12-05-6726825d.pth: FID and the Inception"
    )
    assert "evaluation.inception_score: there is no" in said

    (row,) = evaluations(run)
    kinds = ("fd", "kid", "kid_sd", "precision", "recall")
    names = {f"final/{kind}/{name}" for kind in kinds for name in ("pixels", "efficientnet_lite0")}
    assert row.keys() >= names | {"floor/fd/pixels", "final/circular/efficientnet_lite0"}
    assert row["final/fd/pixels"] > row["floor/fd/pixels"] > 0
    run_id = assert_tracked_once(copied.db, run)
    stored = dict(query(copied.db, "select key, value from metrics where run_uuid = ? and step = 12", run_id))
    assert {key: stored[key] for key in names} == {key: row[key] for key in names}
    assert summary(run)["metrics"].items() >= {key: row[key] for key in names}.items()

    killed = forks.run_code(KILLED, ["3", f"run={again}", "tracking=none", *SMALL], copied.folder)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    before = batches(again)
    assert before.keys() == {f"batch_{i:06d}.safetensors" for i in range(2)}
    assert len(list(again.glob("generated/*/.*.tmp"))) == 1
    evaluate(copied, again, "tracking=none", *SMALL, code=1)
    after = batches(again)
    assert before.items() <= after.items(), "what was there is left alone"
    assert {name: bytes_ for name, (_, bytes_) in after.items()} == {name: b for name, (_, b) in batches(run).items()}
    assert not list(again.glob("generated/*/.*.tmp"))
    assert evaluations(again) == evaluations(run)
