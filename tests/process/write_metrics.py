"""Writes a run's metrics without training: 500 of them, sent by the shipper that runs use.

python write_metrics.py FOLDER URI PAUSE     a row of five metrics every PAUSE seconds
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from urepa.runs.metrics import MetricsLog
from urepa.runs.trackers.mlflow_sender import MLflowShipper

ROWS, KEYS = 100, ("train/total", "train/diffusion", "train/token", "train/manifold", "lr")


def main(folder: Path, uri: str, pause: float) -> None:
    folder.mkdir(parents=True)
    log = MetricsLog(folder / "metrics.jsonl")
    tags = {"folder": str(folder)}
    shipper = MLflowShipper(uri, "urepa", {}, 120.0, folder=folder, name=folder.name, params={"seed": 0}, run_tags=tags)
    shipper.start({})
    for step in range(1, ROWS + 1):
        log.append({"step": step} | {key: float(f"{step}.{i}") for i, key in enumerate(KEYS)})
        shipper.wake()
        time.sleep(pause)
    shipper.close("FINISHED", [], {})
    assert shipper.has_all()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]))
