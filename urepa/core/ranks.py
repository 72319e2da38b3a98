"""The rank of this process in a run. torchrun and accelerate set RANK, WORLD_SIZE and LOCAL_RANK; for the tasks of a
SLURM step this module sets them, before they are read. A run uses one node.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping

from urepa.core.errors import UserError

FIRST_PORT, PORTS = 15_000, 15_000  # below the range of ephemeral ports
COUNTS = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
NEEDED = (*COUNTS, "MASTER_ADDR", "MASTER_PORT")  # needed with several processes; PyTorch's env:// reads them
ADVICE = "start several processes with torchrun or srun, which set all of these; to use one process, unset them"


def adopt_slurm(environment: MutableMapping[str, str] = os.environ) -> None:
    """Sets RANK and the other variables from those of a SLURM step with several tasks. Otherwise changes nothing.

    SLURM_STEP_NUM_TASKS belongs to the step; SLURM_NTASKS is also set in the batch script, around torchrun."""
    world = int(environment.get("SLURM_STEP_NUM_TASKS", "1"))
    if world == 1 or "RANK" in environment:
        return
    if environment.get("SLURM_STEP_NUM_NODES", "1") != "1":
        raise UserError("a run takes the GPUs of one node: give --nodes=1, or torchrun for more")
    own = int(environment["SLURM_JOB_ID"]) * 10 + int(environment["SLURM_STEP_ID"]) % 10
    environment.update(
        RANK=environment["SLURM_PROCID"],
        LOCAL_RANK=environment["SLURM_LOCALID"],
        WORLD_SIZE=str(world),
        LOCAL_WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(FIRST_PORT + own % PORTS),
    )


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
