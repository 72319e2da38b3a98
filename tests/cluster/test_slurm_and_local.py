"""The queue of the local launcher, with small modules in place of training; and the batch script of the SLURM
launcher."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from urepa.cluster.slurm_and_local import LocalQueue, SlurmQueue, print_outcome
from urepa.cluster.slurm_job import UNEVALUATED, Book, Job
from urepa.core.errors import NOT_EVALUATED, UserError

BUSY = """
import json, os, sys, time
begin = time.time()
time.sleep(float(sys.argv[2]))
open(sys.argv[1], "w").write(json.dumps([begin, time.time(), os.environ.get("CUDA_VISIBLE_DEVICES")]))
"""
# begins anew each time, and gets one checkpoint further until its last
DIES = """
import os, signal, sys
from pathlib import Path
folder, last = Path(sys.argv[1]) / "checkpoints", int(sys.argv[2])
at = len(list(folder.glob("*")))
(folder.parent / "begun").open("a").write(f"{at} ")
if at < last:
    (folder / f"step_{at + 1:08d}").mkdir(parents=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Writes a module that jobs can import."""
    code = tmp_path / "code"
    code.mkdir()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(code), os.environ.get("PYTHONPATH", "")]))
    return lambda name, text: (code / f"{name}.py").write_text(text) and None


def busy(tmp_path: Path, count: int, queue: LocalQueue) -> list[list[Any]]:
    jobs = [Job(f"busy {i}", (("busy", str(tmp_path / f"{i}.json"), "0.5"),)) for i in range(count)]
    assert [outcome.error for outcome in queue.run(jobs)] == [None] * count
    return [json.loads((tmp_path / f"{i}.json").read_text()) for i in range(count)]


def at_once(spans: list[list[Any]]) -> int:
    return max(sum(begin <= moment <= end for begin, end, _ in spans) for moment, _, _ in spans)


@pytest.mark.slow
def test_at_most_at_once_jobs_run(tmp_path: Path, module: Callable[[str, str], None]) -> None:
    module("busy", BUSY)
    assert at_once(busy(tmp_path, 4, LocalQueue(2, [], str(tmp_path / "jobs")))) <= 2
    assert {entry.state for entry in Book(tmp_path / "jobs").entries()} == {"done"}


@pytest.mark.slow
def test_each_job_has_its_own_gpu(tmp_path: Path, module: Callable[[str, str], None]) -> None:
    module("busy", BUSY)
    spans = busy(tmp_path, 4, LocalQueue(None, [3, 5], str(tmp_path / "jobs")))
    assert {gpu for *_, gpu in spans} == {"3", "5"}
    for gpu in ("3", "5"):
        assert at_once([span for span in spans if span[2] == gpu]) == 1


def test_without_gpus_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert LocalQueue(None, None, str(tmp_path)).at_once == 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-8f2")
    assert LocalQueue(None, None, str(tmp_path)).gpus == ["4", "GPU-8f2"]
    with pytest.raises(UserError, match="at_once=3: give 1 to 2"):
        LocalQueue(3, None, str(tmp_path))
    with pytest.raises(UserError, match="at_once=0"):
        LocalQueue(0, [], str(tmp_path))


@pytest.mark.slow
def test_killed_jobs_are_retried_while_they_make_progress(tmp_path: Path, module: Callable[[str, str], None]) -> None:
    module("dies", DIES)
    run = tmp_path / "run"
    run.mkdir()
    job = Job("arm", (("dies", str(run), "2"),), str(run))
    queue = LocalQueue(1, [], str(tmp_path / "jobs"))
    module("good", "")
    (outcome,) = queue.run([Job("good", (("good",),))])  # a study's earlier stage
    assert outcome.error is None
    (outcome,) = queue.run([job])
    assert outcome.error is not None
    assert "arm failed 3 times at step 2 and is given up" in outcome.error
    assert (run / "begun").read_text().split() == ["0", "1", "2", "2", "2"]
    assert len(Book(tmp_path / "jobs").entries()) == 2


@pytest.mark.slow
def test_a_failed_job_does_not_stop_the_others(tmp_path: Path, module: Callable[[str, str], None]) -> None:
    module("bad", "print('error: a mistake'); raise SystemExit(1)")
    module("good", "")
    jobs = [Job("bad", (("bad",),)), Job("good", (("good",),))]
    errors = {o.entry.job.name: o.error for o in LocalQueue(1, [], str(tmp_path / "jobs")).run(jobs)}
    assert errors == {"bad": "a mistake", "good": None}
    states = {entry.job.name: entry.state for entry in Book(tmp_path / "jobs").entries()}
    assert states == {"bad": "failed", "good": "done"}


@pytest.mark.slow
def test_leaving_the_queue_ends_running_jobs(
    tmp_path: Path, module: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    module("waits", "import time; open('here', 'w'); time.sleep(600)")
    monkeypatch.chdir(tmp_path)
    queue = LocalQueue(2, [], str(tmp_path / "jobs"))
    outcomes = queue.run([Job("done", (("this",),)), Job("waits", (("waits",),))])
    assert next(outcomes).entry.job.name == "done"
    end = time.monotonic() + 60
    while not (tmp_path / "here").exists() and time.monotonic() < end:
        time.sleep(0.05)
    (process,) = queue.running
    outcomes.close()  # type: ignore[attr-defined]
    assert process.wait(10) == -15


# works until a file is there, and notes each time that it began
WORKS = """
import os, sys, time
with open(sys.argv[1] + ".begun", "a") as file:
    file.write(f"{os.getpid()} ")
while not os.path.exists(sys.argv[1]):
    time.sleep(0.02)
"""
LAUNCHES = """
from urepa.cluster.slurm_job import *
from urepa.cluster.slurm_and_local import *
print(*LocalQueue({at_once}, {gpus}, {folder!r}).run({jobs!r}))
"""


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


class Works:
    """Two running jobs of a launcher that was killed, and one that has not started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "jobs"
        self.files = [folder / name for name in ("a", "b", "c")]
        self.jobs = [Job(f.name, (("works", str(f)),), None if f.name == "b" else str(f) + ".run") for f in self.files]
        said = LAUNCHES.format(at_once=2, gpus=["4", "7"], folder=str(self.folder), jobs=self.jobs[:2])
        launcher = subprocess.Popen([sys.executable, "-c", said], stdout=subprocess.PIPE)
        try:
            until(lambda: all(self.begun(i) for i in (0, 1)))
        finally:
            launcher.kill()
            launcher.communicate()

    def begun(self, i: int) -> list[str]:
        """The processes that started the job."""
        file = self.files[i].with_suffix(".begun")
        return file.read_text().split() if file.exists() else []

    def end(self, *which: int) -> None:
        for i in which:
            self.files[i].touch()

    def states(self) -> list[tuple[str, str, str | None]]:
        return sorted((e.job.name, e.state, e.gpu) for e in Book(self.folder).entries())


@pytest.fixture
def works(tmp_path: Path, module: Callable[[str, str], None]) -> Iterator[Works]:
    module("works", WORKS)
    here = Works(tmp_path)
    yield here
    here.end(0, 1, 2)
    until(lambda: not any(entry.is_running() for entry in Book(here.folder).entries()))


@pytest.mark.slow
def test_a_launcher_waits_for_jobs_of_a_killed_one(works: Works, capfd: pytest.CaptureFixture[str]) -> None:
    """Each job keeps its GPU and one of the `at_once` places. Another command for the same run counts as the same
    job."""
    queue = LocalQueue(2, [7, 4], str(works.folder))
    again = [
        works.jobs[2],
        Job("a again", (("works", str(works.files[0]), "--more"),), works.jobs[0].run),
        works.jobs[1],
    ]

    def steer() -> None:
        try:
            until(lambda: "waiting for b" in capfd.readouterr().out)
            assert (len(works.begun(0)), len(works.begun(1)), works.begun(2)) == (1, 1, [])
            works.end(1)
            until(lambda: len(works.begun(1)) == 2)
            until(lambda: works.begun(2))
            assert len(works.begun(0)) == 1, "the other one still runs"
        finally:
            works.end(0, 1, 2)

    with ThreadPoolExecutor(1) as pool:
        steering = pool.submit(steer)
        ended = list(queue.run(again))
        steering.result()
    assert {o.entry.job.name: o.error for o in ended} == {"a again": None, "b": None, "c": None}
    assert len(works.begun(0)) == 2
    assert works.states() == [
        *[("a", "running", "4"), ("a again", "done", "4")],  # the book of a killed launcher stays as it was
        *[("b", "done", "7"), ("b", "running", "7"), ("c", "done", "7")],
    ]


@pytest.mark.slow
def test_waiting_can_be_ended(works: Works, capfd: pytest.CaptureFixture[str]) -> None:
    said = LAUNCHES.format(at_once=1, gpus=[], folder=str(works.folder), jobs=works.jobs)
    launcher = subprocess.Popen([sys.executable, "-c", said], stdout=subprocess.PIPE, text=True)
    assert launcher.stdout is not None
    assert launcher.stdout.readline().startswith("waiting for a: the process of an earlier start still runs; its log: ")
    launcher.terminate()
    assert launcher.wait(60) == 128 + signal.SIGTERM
    assert [len(works.begun(i)) for i in range(3)] == [1, 1, 0]
    assert [e.is_running() for e in Book(works.folder).entries()] == [True, True]


@pytest.fixture
def settings(tmp_path: Path, compose: Callable[..., Any]) -> dict[str, Any]:
    from launchers.ablation_grid import settings_of

    own = ["cluster=slurm", "cluster.gpus=4", "cluster.partition=gpu", "cluster.account=lab"]
    own += ["cluster.array_parallelism=3", "cluster.setup=[module load cuda]", f"cluster.submitit_folder={tmp_path}"]
    cluster: dict[str, Any] = settings_of(own)["cluster"]
    return cluster


def test_the_script_is_what_an_administrator_expects(
    tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    srun = tmp_path / "srun"
    srun.touch(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", f"/my/packages{os.pathsep}here")
    jobs = [Job(f"arm {i}", (("urepa.train",),)) for i in range(5)]
    lines = SlurmQueue(settings, Path("/the/code")).script(jobs, 4, "train").splitlines()
    for line in (
        "--gres=gpu:h200:4",
        "--ntasks-per-node=4",
        "--nodes=1",
        "--requeue",
        "--signal=USR2@300",
        "--array=0-4%3",
        "--time=1440",
        "--partition=gpu",
        "--account=lab",
        "--job-name=urepa:train",
        "--open-mode=append",
        f"--output={tmp_path}/%A_%a_0_log.out",
        f"--error={tmp_path}/%A_%a_0_log.err",
    ):
        assert f"#SBATCH {line}" in lines, line
    own = f"export PYTHONSAFEPATH=1 PYTHONPATH=/the/code:/my/packages:{Path('here').absolute()}"
    assert lines.index("module load cuda") < lines.index(own)
    assert any(line.startswith("srun ") and " --kill-on-bad-exit=1 " in line for line in lines)
    fewer = SlurmQueue(settings).script(jobs, 1, "evaluate").splitlines()
    assert {"#SBATCH --gres=gpu:h200:1", "#SBATCH --ntasks-per-node=1"} <= set(fewer)
    wider = SlurmQueue(settings).script(jobs, 4, "train", nodes=3).splitlines()
    assert {"#SBATCH --nodes=3", "#SBATCH --ntasks-per-node=4", "#SBATCH --gres=gpu:h200:4"} <= set(wider)
    single = SlurmQueue(settings).script(jobs[:1], 0, "compare")
    assert "--array" not in single
    assert "--gres" not in single
    assert f"#SBATCH --output={tmp_path}/%j_0_log.out" in single


@pytest.mark.parametrize("gpus", [0, 9])
def test_a_run_takes_the_gpus_of_one_node(settings: dict[str, Any], gpus: int) -> None:
    with pytest.raises(UserError, match="1 to 8 GPUs of a node"):
        SlurmQueue(settings | {"gpus": gpus})


@pytest.mark.slow
def test_a_run_without_its_evaluation_is_done_and_reported(
    tmp_path: Path, module: Callable[[str, str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    module("unevaluated", f"import sys; print('error: no tap', file=sys.stderr); sys.exit({NOT_EVALUATED})")
    queue = LocalQueue(1, [], str(tmp_path / "jobs"))
    (outcome,) = queue.run([Job("arm", (("unevaluated",),), str(tmp_path / "run"))])
    assert print_outcome(outcome)
    said = capsys.readouterr().out
    assert said.startswith(f"begun   arm\ndone    arm ({UNEVALUATED})\n        no tap\n")
    assert [entry.state for entry in Book(tmp_path / "jobs").entries()] == ["done"]
