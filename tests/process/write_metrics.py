"""Writes a run's metrics without training: 500 of them, sent by the shipper that runs use.

python write_metrics.py FOLDER URI [GO]     rows of five metrics, the second half when the file GO is there
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from urepa.runs.metrics import MetricsLog
from urepa.runs.trackers.mlflow_sender import MLflowShipper

PAUSE = 0.01  # seconds
ROWS, KEYS = 100, ("train/total", "train/diffusion", "train/token", "train/manifold", "lr")


def main(folder: Path, uri: str, go: Path | None) -> None:
    folder.mkdir(parents=True)
    log = MetricsLog(folder / "metrics.jsonl")
    tags = {"folder": str(folder)}
    shipper = MLflowShipper(uri, "urepa", {}, 120.0, folder=folder, name=folder.name, params={"seed": 0}, run_tags=tags)
    shipper.start({})
    for step in range(1, ROWS + 1):
        while step > ROWS // 2 and go is not None and not go.exists():
            time.sleep(PAUSE)
        log.append({"step": step} | {key: float(f"{step}.{i}") for i, key in enumerate(KEYS)})
        shipper.wake()
        time.sleep(PAUSE)
    shipper.close("FINISHED", [], {})
    assert shipper.has_all()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]) if len(sys.argv) > 3 else None)
