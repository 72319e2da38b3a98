"""Ranks from SLURM's variables: only inside a step with several tasks, and never in place of torchrun's."""

from __future__ import annotations

import pytest

from urepa.core.errors import UserError
from urepa.core.ranks import adopt_slurm, check_ranks, first_host, is_first, tasks_of_nodes

STEP = {
    "SLURM_JOB_ID": "1234",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NUM_NODES": "1",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "5",
}


def test_ranks_of_a_slurm_step() -> None:
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
def test_other_environments_are_left_unchanged(left_alone: dict[str, str]) -> None:
    ours = dict(left_alone)
    adopt_slurm(ours)
    assert ours == left_alone


SECOND_NODE = STEP | {
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "gpu-[07,12]",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_NODEID": "1",
    "SLURM_LOCALID": "1",
}


def test_ranks_of_several_nodes_meet_at_the_first() -> None:
    ours = dict(SECOND_NODE)
    adopt_slurm(ours)
    added = {k: v for k, v in ours.items() if k not in SECOND_NODE}
    port = added.pop("MASTER_PORT")
    assert added == {
        "RANK": "5",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "8",
        "LOCAL_WORLD_SIZE": "4",
        "MASTER_ADDR": "gpu-07",
    }
    check_ranks(ours)
    on_one = dict(STEP)
    adopt_slurm(on_one)
    assert on_one["MASTER_PORT"] == port, "the port is the job's, on every node"


def test_a_given_address_is_where_several_nodes_meet() -> None:
    ours = SECOND_NODE | {"MASTER_ADDR": "10.0.0.7"}
    adopt_slurm(ours)
    assert ours["MASTER_ADDR"] == "10.0.0.7"


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"),
        ("n[1-2]", "n1"),
        ("gpu-[07-09,12],login1", "gpu-07"),
        ("a3,b[1-2]", "a3"),
        ("rack[2-3]node[04,06]", "rack2node04"),
        ("n[1-2].cluster.example", "n1.cluster.example"),
    ],
)
def test_first_host_of_a_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_tasks_of_nodes() -> None:
    assert tasks_of_nodes("8") == ["8"]
    assert tasks_of_nodes("8(x2),4,2(x1)") == ["8", "8", "4", "2"]


ALL = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("environment", "is_the_first"),
    [
        ({}, True),
        ({"MASTER_ADDR": "here", "MASTER_PORT": "1"}, True),  # a batch script's, or accelerate's for one process
        ({"WORLD_SIZE": "1"}, True),
        ({"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "here"}, True),  # a scheduler's, of its one node
        (ALL, False),
        (ALL | {"RANK": "0", "LOCAL_RANK": "0"}, True),
        (ALL | {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, True),
        (ALL | {"LOCAL_RANK": "0"}, False),  # two nodes
    ],
)
def test_valid_environments_give_the_first_rank(environment: dict[str, str], is_the_first: bool) -> None:
    check_ranks(environment)
    assert is_first(environment) is is_the_first


def test_variables_adopted_from_slurm_are_valid() -> None:
    ours = dict(STEP)
    adopt_slurm(ours)
    check_ranks(ours)
    assert not is_first(ours)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"RANK": "1"}, "RANK=1 without WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT in the environment: start"),
        ({"RANK": "0"}, "RANK=0 without WORLD_SIZE"),
        ({"LOCAL_RANK": "0"}, "LOCAL_RANK=0 without RANK, WORLD_SIZE"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 without RANK"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "RANK=0 WORLD_SIZE=2 without LOCAL_RANK"),
        (ALL | {"RANK": "abc"}, "RANK=abc, which is not a whole number"),
        (ALL | {"RANK": "-1"}, "RANK=-1, which is not a whole number"),
        (ALL | {"WORLD_SIZE": ""}, "WORLD_SIZE=, which is not a whole number"),
        (ALL | {"WORLD_SIZE": "0"}, "WORLD_SIZE=0, which is not a number of processes"),
        (ALL | {"RANK": "3"}, r"RANK=3 with WORLD_SIZE=2 \(ranks count from 0\)"),
        (ALL | {"LOCAL_RANK": "2"}, "LOCAL_RANK=2 with WORLD_SIZE=2"),
        *(({k: v for k, v in ALL.items() if k != name}, f"without {name} in") for name in ALL),
    ],
)
def test_invalid_variables_are_reported(environment: dict[str, str], said: str) -> None:
    """Such a process belongs to no run, so no other process prints the error."""
    with pytest.raises(UserError, match=said):
        check_ranks(environment)
    assert is_first(environment)
