"""`python -m urepa.train` with things arranged beforehand, for the tests beside it. Nothing is replaced: functions
are wrapped, and at the n-th call of one of them this process gets a real signal.

    python train_with.py [--kill POINT:N] [--send NAME:POINT:N[:RANK]] [--handler FILE] [--dump FOLDER]
                         [--late RANK:SECONDS] -- OVERRIDES
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RANK = int(os.environ.get("RANK", "0"))


def on_call(owner: Any, name: str, n: int, strike: Callable[..., None], after: bool = False) -> None:
    """`owner.name` unchanged, except that its n-th call sends a signal before (or after) its work."""
    original, calls = getattr(owner, name), 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        mine = calls == n
        if mine and not after:
            strike(*args)
        result = original(*args, **kwargs)
        if mine and after:
            strike(*args)
        return result

    setattr(owner, name, wrapped)


def arrange(point: str, n: int, strike: Callable[..., None]) -> None:
    """Sets up the points that tests name."""
    from urepa.evaluation import buckets
    from urepa.evaluation.validation_loss import Validation
    from urepa.runs import checkpoint
    from urepa.runs.metrics import MetricsLog
    from urepa.training import run_lifecycle, trainer

    simple: dict[str, tuple[Any, str, bool]] = {
        "after_backward": (trainer, "clip_by_global_norm", False),
        "in_validation": (Validation, "_group", False),
        "in_evaluation": (buckets, "run_each", False),
        "validated": (Validation, "__call__", True),
        "before_file": (checkpoint, "save_file", False),  # three files a checkpoint: weights, ema, optimizer
        "after_file": (checkpoint, "save_file", True),
        "after_json": (checkpoint, "write_whole", True),  # two a checkpoint: config.yaml, state.json
        "renamed": (checkpoint, "sync_folder", False),
        "before_summary": (run_lifecycle, "losses_png", False),
    }
    if point in simple:
        owner, name, after = simple[point]
        on_call(owner, name, n, strike, after)
    elif point == "in_prune":

        def half_deleted(folder: Path, *_: Any) -> None:
            next(Path(folder).glob("*.safetensors")).unlink()
            strike()

        prune = checkpoint.prune

        def pruning(*args: Any) -> None:
            on_call(shutil, "rmtree", n, half_deleted)
            prune(*args)

        checkpoint.prune = pruning  # type: ignore[assignment]
    elif point == "half_line":

        def half(log: MetricsLog, row: dict[str, Any]) -> None:
            with open(log.path, "a") as file:
                file.write('{"step": 1, "train/tot')
            strike()

        on_call(MetricsLog, "append", n, half)
    else:
        arrange_sending(point, n, strike)


def arrange_sending(point: str, n: int, strike: Callable[..., None]) -> None:
    """Sets up points inside a batch of metrics that is being sent to MLflow."""
    from mlflow import MlflowClient
    from sqlalchemy.orm import Session

    send, calls, sending = MlflowClient.log_batch, 0, False

    def log_batch(*args: Any, **kwargs: Any) -> None:
        nonlocal calls, sending
        calls += bool(kwargs.get("metrics"))
        sending = bool(kwargs.get("metrics")) and calls == n
        if sending and point == "before_sending":
            strike()
        send(*args, **kwargs)
        if sending and point == "sent":
            strike()
        sending = False

    MlflowClient.log_batch = log_batch
    commit = Session.commit

    def committing(session: Any) -> None:
        if sending and point == "before_commit":
            strike()
        commit(session)
        if sending and point == "committed":
            strike()

    Session.commit = committing
    assert point in ("before_sending", "before_commit", "committed", "sent"), point


def dump_gradients(folder: Path) -> None:
    """Writes every step's gradients, before clipping, and the last parameters; whole ones where they are sharded, and
    of each the number of values that this rank holds."""
    import torch
    from safetensors.torch import save_file

    from urepa.core.shards import own_part, whole
    from urepa.training import trainer
    from urepa.training.trainer import Trainer

    gradients: dict[str, torch.Tensor] = {}
    update, clip = Trainer.update, trainer.clip_by_global_norm
    now: dict[str, Any] = {}

    def updating(self: Trainer, step: int, *args: Any, **kwargs: Any) -> Any:
        now.update(step=step, names={id(p): name for name, p in self.model.named_parameters()})
        done = update(self, step, *args, **kwargs)
        if step + 1 == self.settings.max_steps:
            folder.mkdir(exist_ok=True)
            save_file(gradients, folder / f"gradients_{RANK}.safetensors")
            last = {name: whole(p).detach().clone() for name, p in self.model.named_parameters()}
            save_file(last, folder / f"parameters_{RANK}.safetensors")
            held = {name: torch.tensor(own_part(p).numel()) for name, p in self.model.named_parameters()}
            save_file(held, folder / f"held_{RANK}.safetensors")
        return done

    def clipping(optimizer: torch.optim.Optimizer, *args: Any) -> Any:
        for group in optimizer.param_groups:
            for p in group["params"]:
                gradients[f"{now['step']:04d}/{now['names'][id(p)]}"] = whole(p.grad).detach().clone()
        return clip(optimizer, *args)

    Trainer.update = updating  # type: ignore[method-assign]
    trainer.clip_by_global_norm = clipping


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kill")
    parser.add_argument("--send")
    parser.add_argument("--handler")
    parser.add_argument("--dump", type=Path)
    parser.add_argument("--late", default=":")
    cut = sys.argv.index("--")
    options, overrides = parser.parse_args(sys.argv[1:cut]), sys.argv[cut + 1 :]
    if options.kill:
        point, n = options.kill.split(":")
        arrange(point, int(n), lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    if options.send:
        name, point, n, *rank = options.send.split(":")
        if not rank or int(rank[0]) == RANK:
            arrange(point, int(n), lambda *_: os.kill(os.getpid(), signal.Signals[name]))
    if options.handler:

        def handler(number: int, frame: Any) -> None:  # as submitit does it, before training
            steps = sorted(p.name for p in Path("outputs").glob("*/seed0/checkpoints/step_*"))
            exits, _, note = options.handler.rpartition(":")
            Path(note).write_text(f"{number} {steps[-1]}")
            if exits:
                sys.exit(3)

        signal.signal(signal.SIGUSR2, handler)
    if options.dump:
        dump_gradients(options.dump)
    late, _, seconds = options.late.partition(":")
    if late == str(RANK):
        time.sleep(float(seconds))
    sys.argv = ["urepa.train", *overrides]

    from urepa.cli import prepare, run_command
    from urepa.train import main as train

    prepare()
    run_command(train, "train")


if __name__ == "__main__":
    main()
