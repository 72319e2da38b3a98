"""A run over two nodes of a real SLURM: the ranks find each other, and a preemption, a killed rank and a lost node
change nothing. Its SLURM is its own, because it loses a node."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, running, seldom, what_is_missing
from test_parallel_training import assert_same_losses
from test_slurm_sweep import Sweep, is_pending, pid_of
from workspace import Workspace, assert_same_end, steps, wait_for

pytestmark = pytest.mark.long(waits=True)

STEPS = 24
LONGER = (f"trainer.max_steps={STEPS}", "tracking=none")
# the nodes' names are no hosts' names here
NODES = ("hydra.launcher.nodes=2", "hydra.launcher.setup=['export MASTER_ADDR=127.0.0.1']")
ADOPTED = """
import json, os
from urepa.core.ranks import adopt_slurm
adopt_slurm()
print(json.dumps({name: os.environ[name] for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR")}))
"""


@pytest.fixture(scope="module")
def two_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    missing = what_is_missing()
    if missing is not None:
        pytest.skip(f"these tests need a SLURM of their own: {missing}")
    with running(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


def test_ranks_are_those_of_the_step(two_nodes: Cluster) -> None:
    """Three tasks on two nodes, without training."""
    done = two_nodes.run("srun", "--nodes=2", "--ntasks=3", "--mem=0", sys.executable, "-c", ADOPTED)
    found = sorted((json.loads(line) for line in done.splitlines()), key=lambda one: int(one["RANK"]))
    assert [one["RANK"] for one in found] == ["0", "1", "2"]
    assert [(one["LOCAL_RANK"], one["LOCAL_WORLD_SIZE"]) for one in found] == [("0", "2"), ("1", "2"), ("0", "1")]
    assert {one["MASTER_ADDR"] for one in found} == {"n1"}


class Disturbed:
    """A sweep of one run, in which something happens after a checkpoint of each of its starts."""

    def __init__(self, work: Workspace, cluster: Cluster) -> None:
        self.sweep, self.cluster = Sweep(work, cluster, *LONGER, *NODES), cluster
        self.entry = self.sweep.entry()
        self.run = Path(self.entry.job.run or "")
        self.restarts = 0

    @contextlib.contextmanager
    def stopped(self) -> Iterator[int]:
        """The first rank's process, stopped once this start of the job has written a checkpoint."""
        last = (steps(self.run) or [0])[-1]
        wait_for(lambda: (steps(self.run) or [0])[-1] > last, self.sweep.process, f"a checkpoint after step {last}")
        pid = pid_of(self.run)
        os.kill(pid, signal.SIGSTOP)
        assert steps(self.run)[-1] < STEPS, "stopped too late"
        try:
            yield pid
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def wait_for_restart(self) -> None:
        self.restarts += 1

        def restarted() -> bool:
            details = self.cluster.details(self.entry.id)
            return details["JobState"] == "RUNNING" and int(details["Restarts"]) >= self.restarts

        wait_for(seldom(restarted), self.sweep.process, f"restart {self.restarts}")


def preempted(run: Disturbed) -> None:
    """Both ranks get the signal; both stop after the same step."""
    with run.stopped() as pid:
        run.cluster.run("scancel", "--signal=USR2", run.entry.id)
        wait_for(lambda: is_pending(pid, signal.SIGUSR2), run.sweep.process, "the signal")


def with_a_killed_rank(run: Disturbed) -> None:
    """The rank on the second node; SLURM ends the other, and the batch script requeues the job."""
    with run.stopped():
        for pid in run.cluster.tasks("n2"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def without_a_node(run: Disturbed) -> None:
    """The second node is gone for as long as it takes SLURM to put the job back into its queue."""
    with run.stopped():
        run.cluster.lose_node("n2")
    pending = seldom(lambda: run.cluster.details(run.entry.id)["JobState"] == "PENDING")
    wait_for(pending, run.sweep.process, "the requeue")
    run.cluster.return_node("n2")


def test_a_disturbed_run_over_two_nodes(two_nodes: Cluster, work: Workspace, make_workspace) -> None:  # type: ignore[no-untyped-def]
    """It ends bit for bit as two undisturbed processes of one machine, and to rounding as one process."""
    run = Disturbed(work, two_nodes)
    for event in (preempted, with_a_killed_rank, without_a_node):
        event(run)
        run.wait_for_restart()
    code, out, err = run.sweep.end()
    assert code == 0, (out, err)
    details = two_nodes.details(run.entry.id)
    assert (details["NumNodes"], details["NumTasks"], details["Restarts"]) == ("2", "2", "3")
    assert details["NodeList"] == "n[1-2]"
    log = Path(run.entry.log).with_suffix(".out").read_text()
    assert log.count("stopped at step") == 1, "rank 0 alone reports"
    assert json.loads((work.run / "summary.json").read_text())["processes"] == 2
    undisturbed, alone = make_workspace(), make_workspace()
    undisturbed.train(*LONGER, ranks=2)
    assert_same_end(work.run, undisturbed.run)
    alone.train(*LONGER)
    assert_same_losses(work.run, alone.run)
