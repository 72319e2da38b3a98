"""Which process of a run this one is. torchrun and accelerate say it in RANK, WORLD_SIZE and LOCAL_RANK; the tasks
of a SLURM step learn it here, before anything asks. A run lies on one node.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

from urepa.errors import UserError

FIRST_PORT, PORTS = 15_000, 15_000  # below the range from which systems give ports away


def adopt_slurm(environment: MutableMapping[str, str] = os.environ) -> None:
    """Sets RANK and the rest from the variables of a SLURM step with several tasks; leaves all else alone.

    SLURM_STEP_NUM_TASKS is the step's own: SLURM_NTASKS also stands in the batch script, around torchrun."""
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


def is_first() -> bool:
    """Is this the process that speaks and writes for its run?"""
    return os.environ.get("RANK", "0") == "0"
