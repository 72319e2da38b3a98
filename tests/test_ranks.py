"""Ranks from SLURM's variables: only inside a step with several tasks, and never over torchrun's."""

from __future__ import annotations

import pytest

from urepa.errors import UserError
from urepa.ranks import adopt_slurm

STEP = {
    "SLURM_JOB_ID": "1234",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NUM_NODES": "1",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "5",
}


def test_of_a_step() -> None:
    ours = dict(STEP)
    adopt_slurm(ours)
    added = {k: v for k, v in ours.items() if k not in STEP}
    port = added.pop("MASTER_PORT")
    assert added == {
        "RANK": "5",
        "LOCAL_RANK": "5",
        "WORLD_SIZE": "8",
        "LOCAL_WORLD_SIZE": "8",
        "MASTER_ADDR": "127.0.0.1",
    }
    assert 15_000 <= int(port) < 30_000


def test_jobs_of_one_node_do_not_share_a_port() -> None:
    def port(job: int, step: int) -> str:
        environment = STEP | {"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)}
        adopt_slurm(environment)
        return environment["MASTER_PORT"]

    jobs = [(job, step) for job in range(1000, 1064) for step in range(3)]
    assert len({port(*job) for job in jobs}) == len(jobs)


@pytest.mark.parametrize(
    "left_alone",
    [
        {},
        {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"},  # a batch script, around torchrun
        STEP | {"SLURM_STEP_NUM_TASKS": "1"},
        STEP | {"RANK": "0", "WORLD_SIZE": "2"},  # torchrun inside a step
    ],
)
def test_nothing_else_is_touched(left_alone: dict[str, str]) -> None:
    ours = dict(left_alone)
    adopt_slurm(ours)
    assert ours == left_alone


def test_one_node() -> None:
    with pytest.raises(UserError, match="one node"):
        adopt_slurm(STEP | {"SLURM_STEP_NUM_NODES": "2"})
