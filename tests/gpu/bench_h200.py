"""Track A's step on one H200, in under 8 minutes: `python tests/gpu/bench_h200.py [FOLDER]`.

Random weights and data, batch 128, bf16. The full objective beside the document's loop; a quarter of the diffusion
term and none; each speed switch turned over by itself. Writes bench.json and bench.md (the README's table) to FOLDER.
Goals: at most 0.40 s a step and 65 GiB for the full objective, 0.16 s with loss.diffusion_fraction=0.25.
"""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

COMMAND = ["-m", "urepa.bench", "+experiment=track_a", "backbone.weights=random"]
ROUNDS = ["bench.steps=5", "bench.rounds=3"]
RUNS = {
    "full objective": ["bench.against=documented"],
    "diffusion_fraction=0.25": ["loss.diffusion_fraction=0.25"],
    "diffusion_fraction=0": ["loss.diffusion_fraction=0"],
    "frozen weights in fp32": ["trainer.frozen=fp32"],
    "without channels_last": ["trainer.channels_last=false"],
    "cuDNN attention first": ["trainer.attention=cudnn"],
    "flash attention first": ["trainer.attention=flash"],
    "memory-efficient attention first": ["trainer.attention=efficient"],
    "compiled blocks": ["trainer.compile=true"],
}
BUDGET = 460  # seconds; what has not begun by then is left out, and said to be


def main(folder: Path) -> None:
    """Runs, and writes after every run: what was measured is kept whatever happens next."""
    folder.mkdir(parents=True, exist_ok=True)
    begin, done = time.monotonic(), {}
    for name, more in RUNS.items():
        left = BUDGET - (time.monotonic() - begin)
        done[name] = run(more, left) if left > 30 else {"why": "no time was left"}
        (folder / "bench.json").write_text(json.dumps(done, indent=1))
        (folder / "bench.md").write_text(markdown(done))
        print((folder / "bench.md").read_text().splitlines()[-1], flush=True)
    print((folder / "bench.md").read_text())


def run(more: list[str], seconds: float) -> dict[str, Any]:
    """Rows of one bench, or why there are none."""
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "rows.json"
        command = [sys.executable, *COMMAND, *ROUNDS, *more, f"out={out}"]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=seconds)
        except subprocess.TimeoutExpired:
            return {"why": "took too long"}
        except subprocess.CalledProcessError as error:
            return {"why": error.stderr.strip().splitlines()[-1]}
        return {"rows": json.loads(out.read_text()), "command": " ".join(["python", *COMMAND, *ROUNDS, *more])}


def markdown(done: dict[str, Any]) -> str:
    """The table."""
    head = "| run | loop | s/step | images/s | TFLOP/s | peak GiB | waits for data |"
    lines = [head, "|---|---|---|---|---|---|---|"]
    about = ""
    for name, result in done.items():
        if "why" in result:
            lines.append(f"| {name} | not measured: {result['why']} | | | | | |")
            continue
        for row in result["rows"]:
            versions = ", ".join(f"{k} {v}" for k, v in row["versions"].items())
            about = f"{row['device']}, CUDA {row['cuda']}, {versions}, batch {row['batch_size']}, {row['precision']}"
            lines.append(
                f"| {name} | {row['path']} | {row['step_s']:.3f} | {row['images_per_s']:.0f} | "
                f"{row['tflops_per_s']:.0f} | {row['peak_memory_bytes'] / 2**30:.1f} | {row['data_wait_share']:.1%} |"
            )
    return "\n".join([f"{datetime.date.today()}; {about}; `python tests/gpu/bench_h200.py`", "", *lines]) + "\n"


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "bench_h200"))
