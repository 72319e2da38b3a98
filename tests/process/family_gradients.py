"""The gradients of two steps of each family's small network, in as many processes as torchrun's variables say.

    python family_gradients.py FILE BACKBONE,BACKBONE,... OVERRIDES

Rank 0 writes the gradients, averaged over ranks, of every parameter to FILE.
"""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

STEPS = 2
RANK = int(os.environ.get("RANK", "0"))


def main(file: str, backbones: list[str], overrides: list[str]) -> None:
    import hydra
    from accelerate import Accelerator

    from urepa.cli import CONF, prepare
    from urepa.runs.run_folder import to_plain
    from urepa.runs.trackers.no_tracking import NoShipper
    from urepa.training import trainer as trainers
    from urepa.training.trainer_assembly import build

    prepare()
    torch.set_num_threads(1)
    gradients: dict[str, torch.Tensor] = {}
    accelerator, clip = Accelerator(cpu=True), trainers.clip_by_global_norm
    for backbone in backbones:
        with hydra.initialize_config_dir(CONF, version_base="1.3"):
            config = to_plain(hydra.compose("train", [*overrides, f"backbone={backbone}"]))
        folder = Path(file).parent / f"{backbone}_{RANK}"
        folder.mkdir()
        trainer, _ = build(config, folder, accelerator, NoShipper())
        names = {id(p): name for name, p in trainer.model.named_parameters()}
        for step in range(STEPS):

            def noting(optimizer: Any, *norm: Any, at: str = f"{backbone}/{step}", of: Any = names) -> Any:
                parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
                gradients.update({f"{at}/{of[id(p)]}": p.grad.clone() for p in parameters})
                return clip(optimizer, *norm)

            trainers.clip_by_global_norm = noting  # before clipping
            trainer.update(step, trainer.reader.read(step), with_tap_gradients=False)
        trainer.reader.cache.close()
        del trainer
        gc.collect()  # a DDP wrapper that outlives its process group aborts at exit
    if RANK == 0:
        save_file(gradients, file)
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2].split(","), sys.argv[3:])
