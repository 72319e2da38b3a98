"""The short table a run ends with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

ROWS = (
    ("validation diffusion loss", "val/diffusion", "floor/zero_predictor", "predicting zero"),
    ("validation token loss", "val/token", "floor/constant_token", "the best constant token"),
    ("validation manifold loss", "val/manifold", None, ""),
    ("samples named rightly by a k-NN", "final/samples_named_rightly", None, ""),
    ("k-NN on the tap", "final/tap_knn", "final/teacher_knn", "on the teacher"),
    ("linear probe of the tap", "final/tap_linear_probe", None, ""),
)


def print_report(summary: dict[str, Any], folder: Path, tracked: str, next_command: str) -> None:
    """What was reached, against its floor, and where everything lies."""
    metrics = summary["metrics"]
    print(f"\n{summary['experiment']} · {summary['ablation']} · seed {summary['seed']} · step {summary['step']}")
    for label, key, floor, floor_label in ROWS:
        if key in metrics:  # a value that is not finite is stored as a string
            beside = f"   {floor_label} {float(metrics[floor]):.3f}" if floor in metrics else ""
            print(f"  {label:<32} {float(metrics[key]):>7.3f}{beside}")
    seconds = summary["seconds"]["training"]
    images = summary["step"] * summary["batch_size"]
    print(f"  {'training':<32} {seconds:>6.0f}s   {images / max(seconds, 1e-9):.0f} images/s")
    samples = folder / "samples" / f"step_{summary['step']:08d}.png"
    print(f"\n  folder   {folder}")
    if samples.exists():
        print(f"  samples  {samples}")
    print(f"  curves   {folder}/losses.png\n  MLflow   {tracked}\n  next     {next_command}\n")
