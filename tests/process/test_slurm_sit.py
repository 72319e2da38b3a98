"""A sweep of a SiT on a real SLURM: arms of REPA, one preempted and one killed, end like uninterrupted ones."""

from __future__ import annotations

import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from cluster import Cluster, seldom
from test_slurm_sweep import Sweep, is_pending, killed, runs_of, stopped
from workspace import TINY_SIT, Workspace, assert_same_run, assert_tracked_once, wait_for

pytestmark = pytest.mark.long(waits=True)


def test_disturbed_arms_of_a_sit_end_like_uninterrupted_ones(
    slurm: Cluster, make_workspace: Callable[..., Workspace]
) -> None:
    """The last task of an array has the array's own number: when it is killed and requeued, it runs alone, past the
    first one, which is stopped."""
    work, undisturbed = (make_workspace(TINY_SIT) for _ in range(2))
    arms = "loss.lambda_max=0,0.5"
    sweep = Sweep(work, slurm, arms)
    first, last = (sweep.entry(arm) for arm in ("loss.lambda_max=0", "loss.lambda_max=0.5"))

    def restarts() -> list[str]:
        return [slurm.details(entry.id)["Restarts"] for entry in (first, last)]

    with ThreadPoolExecutor(2) as pool:
        reference = pool.submit(undisturbed.train, "tracking=none", arms, "-m")
        murder = pool.submit(killed, sweep, last)
        with stopped(sweep, first) as pid:
            murder.result()
            wait_for(seldom(lambda: restarts()[1] == "1"), sweep.process, "the killed one's restart")
            assert restarts() == ["0", "1"]
            slurm.run("scancel", "--signal=USR2", first.id)
            wait_for(lambda: is_pending(pid, signal.SIGUSR2), sweep.process, "the signal")
        reference.result()
    code, out, err = sweep.end()
    assert code == 0, (out, err)
    assert restarts() == ["1", "1"]
    ours, theirs = runs_of(work), runs_of(undisturbed)
    assert sorted(ours) == sorted(theirs) == [(0.0, 0), (0.5, 0)]
    for which, run in ours.items():
        assert_same_run(run, theirs[which])
        assert_tracked_once(work.db, run)
