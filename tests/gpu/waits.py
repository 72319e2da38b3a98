"""A run's first steps, in which waiting for the device is an error: `python tests/gpu/waits.py FOLDER
[KEY=VALUE...]`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WARM_UP = 2  # steps in which kernels are chosen and memory is taken


def losses_without_waiting(trainer: Any, steps: int) -> list[float]:
    """The total losses of the first `steps` updates. RuntimeError if an update after WARM_UP waits for the GPU; a CPU
    never waits."""
    totals = []
    with contextlib.closing(trainer.reader.stream(0, steps)) as stream:
        for step, batches in enumerate(stream):
            with _waiting_is_an_error(trainer.accelerator.device.type == "cuda" and step >= WARM_UP):
                update = trainer.update(step, batches, with_tap_gradients=step % 4 == 0)
            totals.append(update.terms.total.item())
    return totals


@contextlib.contextmanager
def _waiting_is_an_error(watched: bool) -> Iterator[None]:
    import torch

    if not watched:
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def main(folder: Path, overrides: list[str]) -> None:
    """Prints the totals of eight steps of the quickstart, changed by `overrides`."""
    import hydra

    from urepa.cli import CONF, prepare
    from urepa.runs.run_folder import to_plain
    from urepa.runs.trackers.no_tracking import NoShipper
    from urepa.training import trainer_assembly
    from urepa.training.run_lifecycle import accelerate_for

    prepare()
    with hydra.initialize_config_dir(CONF, version_base="1.3"):
        config = to_plain(hydra.compose("train", ["tracking=none", "trainer.batch_size=8", *overrides]))
    shipper = NoShipper()
    trainer, _ = trainer_assembly.build(config, folder, accelerate_for(config["trainer"]), shipper)
    print("totals", *losses_without_waiting(trainer, 8))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
