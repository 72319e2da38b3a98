"""The rank of this process in a run. torchrun and accelerate set RANK, WORLD_SIZE and LOCAL_RANK; for the tasks of a
SLURM step this module sets them, before they are read: one task is one rank, on one node or on several.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, MutableMapping

from urepa.core.errors import UserError

FIRST_PORT, PORTS = 15_000, 15_000  # below the range of ephemeral ports
COUNTS = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
NEEDED = (*COUNTS, "MASTER_ADDR", "MASTER_PORT")  # needed with several processes; PyTorch's env:// reads them
ADVICE = "start several processes with torchrun or srun, which set all of these; to use one process, unset them"


def adopt_slurm(environment: MutableMapping[str, str] = os.environ) -> None:
    """Sets RANK and the other variables from those of a SLURM step with several tasks. Otherwise changes nothing.

    SLURM_STEP_NUM_TASKS belongs to the step; SLURM_NTASKS is also set in the batch script, around torchrun. On several
    nodes the ranks meet at the step's first node, which has rank 0, or at a given MASTER_ADDR."""
    world = int(environment.get("SLURM_STEP_NUM_TASKS", "1"))
    if world == 1 or "RANK" in environment:
        return
    address, on_node = "127.0.0.1", str(world)
    if environment.get("SLURM_STEP_NUM_NODES", "1") != "1":
        address = environment.get("MASTER_ADDR") or first_host(environment["SLURM_STEP_NODELIST"])
        on_node = tasks_of_nodes(environment["SLURM_STEP_TASKS_PER_NODE"])[int(environment["SLURM_NODEID"])]
    own = int(environment["SLURM_JOB_ID"]) * 10 + int(environment["SLURM_STEP_ID"]) % 10
    environment.update(
        RANK=environment["SLURM_PROCID"],
        LOCAL_RANK=environment["SLURM_LOCALID"],
        WORLD_SIZE=str(world),
        LOCAL_WORLD_SIZE=on_node,
        MASTER_ADDR=address,
        MASTER_PORT=str(FIRST_PORT + own % PORTS),
    )


def first_host(nodes: str) -> str:
    """The first host of a list of nodes as SLURM writes it: `gpu-[07-09,12],login1` is gpu-07 and others."""
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", nodes).split(",")[0]


def tasks_of_nodes(tasks: str) -> list[str]:
    """The number of tasks of each node: `8(x2),4` is 8, 8 and 4."""
    repeated = [re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part) for part in tasks.split(",")]
    return [one[1] for one in repeated if one is not None for _ in range(int(one[2] or 1))]


def check_ranks(environment: Mapping[str, str] = os.environ) -> None:
    """Raises UserError if RANK, WORLD_SIZE and LOCAL_RANK are inconsistent."""
    if wrong := _invalid_variables(environment):
        raise UserError(f"{wrong} in the environment: {ADVICE}")


def is_first(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process prints and writes for its run. A process with invalid variables prints too."""
    return environment.get("RANK", "0") == "0" or bool(_invalid_variables(environment))


def _invalid_variables(environment: Mapping[str, str]) -> str:
    """What is wrong with the variables, as the subject of a sentence; "" if nothing is. WORLD_SIZE=1 (with RANK=0), as
    a scheduler sets it for a node, is one process; MASTER_ADDR or MASTER_PORT alone says nothing about ranks."""
    given = {name: environment[name] for name in COUNTS if name in environment}
    for name, value in given.items():
        if not (value.isascii() and value.isdecimal()):
            return f"{name}={value}, which is not a whole number,"
    known = {name: int(value) for name, value in given.items()}
    world = known.get("WORLD_SIZE")
    if world == 0:
        return "WORLD_SIZE=0, which is not a number of processes,"
    for name in ("RANK", "LOCAL_RANK"):
        if world is not None and name in known and known[name] >= world:
            return f"{name}={known[name]} with WORLD_SIZE={world} (ranks count from 0)"
    missing = [name for name in NEEDED if name not in environment]
    is_single = world == 1 and "LOCAL_RANK" not in given
    if not given or is_single or not missing:
        return ""
    return f"{' '.join(f'{k}={v}' for k, v in given.items())} without {', '.join(missing)}"
