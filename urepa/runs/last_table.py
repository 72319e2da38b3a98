"""The short table that is printed at the end of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from urepa.core.ema_initial_weights import LAGGING, SHARE, initial_share, lag_sentence
from urepa.core.escaping import printable
from urepa.runs.run_folder import Names
from urepa.runs.summary import early_text

ROWS = (
    ("validation diffusion loss", "val/diffusion", "floor/zero_predictor", "predicting zero"),
    ("  without any condition", "floor/null_condition", None, ""),
    ("validation token loss", "val/token", "floor/constant_token", "the best constant token"),
    ("validation manifold loss", "val/manifold", None, ""),
    ("validation dispersive loss", "val/dispersive", None, ""),
    ("validation distance to itself", "val/self_distance", None, ""),
    ("samples classified correctly by a k-NN", "final/samples_named_rightly", None, ""),
    ("k-NN on the tap", "final/tap_knn", "final/teacher_knn", "on the teacher"),
    ("linear probe of the tap", "final/tap_linear_probe", None, ""),
    ("k-NN: tap", "final/knn/tap", "final/knn/teacher", "on the teacher"),
    ("k-NN: head", "final/knn/head", None, ""),
    ("linear probe: tap", "final/linear_probe/tap", "final/linear_probe/teacher", "of the teacher"),
    ("linear probe: head", "final/linear_probe/head", None, ""),
    ("token cosine", "final/token_cosine", None, ""),
    ("MAE of sample similarities", "final/similarity_mae", None, ""),
    ("nearest-neighbour recall", "final/neighbour_recall", None, ""),
    ("CKA of the tap", "final/cka", "final/untrained_cka", "untrained"),
    ("CKNNA of the tap", "final/cknna", "final/untrained_cknna", "untrained"),
    ("mIoU: tap", "final/dense/tap", "final/dense/teacher", "of the teacher"),
    ("LDS: tap", "final/lds/tap", "final/lds/teacher", "of the teacher"),
    ("distance of reconstructions", "final/image_distance", "final/image_distance_text", "of the captions alone"),
    ("layout as the donor's", "final/swap_layout/both", "final/swap_layout_chance/both", "as a third image's"),
    ("nearest to the caption's class", "final/caption_named/text", "final/caption_named_chance", "by chance"),
    ("Inception Score", "final/inception_score", None, ""),
    ("CLIP score", "final/clip_score", None, ""),
)


def print_report(
    summary: dict[str, Any], trainer: dict[str, Any], folder: Path, tracked: str, next_command: str
) -> None:
    """Prints the results, each with its reference value, and the locations of all files. `trainer`: the part of that
    name in the run's config."""
    metrics = summary["metrics"]
    names = Names(summary["experiment"], summary["ablation"], tuple(summary.get("overrides", ())))
    lines = ["", f"{names.experiment} · {names.arm} · seed {summary['seed']} · step {summary['step']}"]
    if early := early_text(summary):
        lines.append(f"  {early}")
    for label, key, floor, floor_label in (*ROWS, *_distances(metrics)):
        if key in metrics:  # a value that is not finite is stored as a string
            beside = f"   {floor_label} {float(metrics[floor]):.3f}" if floor in metrics else ""
            lines.append(f"  {label:<32} {float(metrics[key]):>7.3f}{beside}")
    seconds = summary["seconds"]["training"]
    images = summary["step"] * summary["batch_size"]
    lines.append(f"  {'training':<32} {seconds:>6.0f}s   {images / max(seconds, 1e-9):.0f} images/s")
    if sentence := _lag_sentence(summary, trainer):
        lines += ["", f"  {sentence}"]
    samples = folder / "samples" / f"step_{summary['step']:08d}.png"
    lines += ["", f"  folder   {folder}"]
    if samples.exists():
        lines.append(f"  samples  {samples}")
    lines += [f"  curves   {folder}/losses.png", f"  MLflow   {tracked}", f"  next     {next_command}", ""]
    print("\n".join(map(printable, lines)))  # names may come from an untrusted run


def _lag_sentence(summary: dict[str, Any], trainer: dict[str, Any]) -> str:
    """A sentence if more than 5 % of the EMA weights are still the initial weights; else ""."""
    decay, warmup = trainer["ema_decay"], trainer["ema_warmup"]
    updates = summary["step"] - int(summary["metrics"].get("guard/skipped_steps", 0))
    share = float(summary["metrics"].get(SHARE, initial_share(decay, updates, warmup)))  # older runs lack it
    return lag_sentence(share, decay, updates, warmup) if share > LAGGING else ""


def _distances(metrics: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Rows of the Fréchet distances by encoder, each with its error over resamplings of the images."""
    names = [key.removeprefix("final/fd/") for key in metrics if key.startswith("final/fd/")]
    marks = {name: ", circular" if f"final/circular/{name}" in metrics else "" for name in names}
    rows = []
    for n in names:
        rows.append((f"FD({n}{marks[n]})", f"final/fd/{n}", f"floor/fd/{n}", "of held-out images"))
        rows.append(("  standard error", f"final/fd_se/{n}", f"floor/fd_se/{n}", "of held-out images"))
    return rows
