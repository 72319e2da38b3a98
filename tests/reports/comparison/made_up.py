"""Made-up studies as run folders: real configs, files as training writes them, and losses with known effects."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

VERSIONS = {"python": "3.11", "torch": "2.13.0"}
COMMIT = "a" * 40
HOSTILE = (
    '<script>alert("1")</script>',
    "a'b\"c`d",
    "\\input{x}_$\\frac$ 50% & #1 ~^ {z}",
    "😀 ünïcode λ ± 日本",
    "| bars | and\nlines -->",
    "=cmd()|' /C calc'!A0",
    "\x1b[31mred",
)
TERMS = ("total", "diffusion", "token", "manifold")


def changed(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy of the config with dotted keys set."""
    config = copy.deepcopy(config)
    for key, value in changes.items():
        *parents, last = key.split(".")
        node = config
        for parent in parents:
            node = node[parent]
        node[last] = value
    return config


@lru_cache(maxsize=256)  # most tests write the same seeds of the same configs, and a config takes 25 ms
def _as_yaml(config_json: str) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(json.loads(config_json)))


def write_run(
    folder: Path,
    config: dict[str, Any],
    *,
    ablation: str = "baseline",
    experiment: str = "quickstart",
    last: dict[str, float] | None = None,
    points: int = 20,
    finished: bool = True,
    summary: dict[str, Any] | None = None,
    course: dict[int, dict[str, float]] | None = None,
    start: int = 1_800_000_000_000,
    images_per_s: float | None = 50.0,
    only: tuple[str, ...] = ("",),
) -> Path:
    """Writes a run's folder: curves that fall to its last values (`last` adds to the defaults or replaces them;
    `course` has more rows, by step; `images_per_s` None: a run that has not logged it; `only`: prefixes of the logged
    keys, because each metric takes seconds to draw)."""
    rng = np.random.default_rng(config["seed"])
    seed_effect = 0.01 * rng.standard_normal()
    lam = config["loss"].get("lambda_max", 0.0)
    values = {
        "val/total": 1.0 + seed_effect,
        "val/diffusion": 0.37 + seed_effect,
        "val/token": 0.5 + seed_effect,
        "val/cosine": 0.5 - seed_effect,
        "val/manifold": 0.03 + 0.1 * abs(seed_effect),
        "val/x0_error": 0.26 + seed_effect,
        "floor/zero_predictor": 1.0,
        "floor/constant_token": 0.58,
    }
    values |= {f"val/x0_error_by_t/{i / 10:.1f}-{(i + 1) / 10:.1f}": 0.05 * (i + 1) + seed_effect for i in range(10)}
    values |= {f"val/diffusion_by_t/{i / 10:.1f}-{(i + 1) / 10:.1f}": 0.3 + seed_effect for i in range(10)}
    final = {"final/tap_knn": 0.3 + seed_effect, "final/teacher_knn": 0.8}
    for key, value in (last or {}).items():
        (final if key.startswith("final/") else values)[key] = value
    steps = config["trainer"]["max_steps"]
    rows = []
    for i, step in enumerate(np.unique(np.linspace(1, steps if finished else steps // 2, points).astype(int)).tolist()):
        decay = float(np.exp(-5 * step / steps))
        row = {"step": step}
        row |= {f"train/{t}": values[f"val/{t}"] + decay + 0.02 * rng.standard_normal() for t in TERMS}
        row |= {"train/lambda": lam, "lr": 1e-3} | ({} if images_per_s is None else {"images_per_s": images_per_s})
        row["tap/mid/grad_cosine"] = 0.1 * rng.standard_normal()
        rows.append(row | {"time": start + 1000 * i})
    if finished:
        rows[-1] |= values
        rows.append({"step": steps} | final | {"time": start + 1000 * points})
    rows += [{"step": step} | found | {"time": start} for step, found in (course or {}).items()]
    rows.sort(key=lambda row: row["step"])
    rows = [{k: v for k, v in row.items() if k in ("step", "time") or k.startswith(only)} for row in rows]
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(_as_yaml(json.dumps(config)))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if finished:
        facts = {
            "experiment": experiment,
            "ablation": ablation,
            "seed": config["seed"],
            "step": steps,
            "extended_from": None,
            "metrics": {k: v for k, v in (values | final).items() if k.startswith(only)},
            "parameters": {"backbone": 1_000_000, "heads": 500_000, "heads_trainable": 500_000},
            "seconds": {"training": 2.0 * steps, "this_process": 2.0 * steps},
            "peak_memory_bytes": 3_000_000_000,
            "processes": 1,
            "threads": 1,
            "device": "cpu",
            "data": {"latents": {"csv_sha256": {"train.csv": "t", "val.csv": "v"}}, "tokens": None},
            "validation_set": "v" * 16,
            "evaluation": config["evaluation"],
            "versions": VERSIONS,
            "git_commit": COMMIT,
            "code_state": "clean",
        }
        (folder / "summary.json").write_text(json.dumps(facts | (summary or {})))
    return folder


def without_alignment(add: Callable[..., None], tmp_path: Path) -> None:
    """A control that logs no term of alignment, and arms of two grids."""
    add("none", {"loss": {"_target_": "urepa.method.losses.no_loss.NoLoss"}}, name="none")
    for file in (tmp_path / "outputs" / "none").rglob("metrics.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        aligned = ("token", "manifold", "cosine", "grad_cosine")
        kept = [{k: v for k, v in row.items() if not any(word in k for word in aligned)} for row in rows]
        file.write_text("".join(json.dumps(row) + "\n" for row in kept))
    bins = {f"val/token_by_t/{i / 10:.1f}-{(i + 1) / 10:.1f}": 0.5 for i in range(10)}
    way = {300: {"val/token": 0.6}}
    add("a", {"loss.lambda_max": 0.25}, values=lambda seed: bins, course=lambda seed: way)
    add("b", {"loss.lambda_max": 0.5}, values=lambda seed: bins, course=lambda seed: way)
    add("c", {"teacher.grid": [8, 8]}, values=lambda seed: bins, course=lambda seed: way)
