"""The figures on the page of results are those of the stored runs of study=which_choice."""

from __future__ import annotations

import json
from pathlib import Path

from omegaconf import OmegaConf

ROOT = Path(__file__).parents[1]
STORED = ROOT / "results" / "which_choice"
PAGE = " ".join((ROOT / "docs" / "results.md").read_text().split())
OTHER_LOSSES = ("class", "class_control", "uniform_t", "uniform_t_control")  # not comparable with the baseline's


def values(seed: int, key: str) -> dict[str, float]:
    """A metric of all arms with this seed."""
    summaries = {
        file.parents[1].name: json.loads(file.read_text()) for file in STORED.glob(f"*/seed{seed}/summary.json")
    }
    assert {one["git_commit"][:7] for one in summaries.values()} == {"172bca4"}
    assert {one["step"] for one in summaries.values()} == {500}
    return {arm: one["metrics"][key] for arm, one in summaries.items()}


def test_the_lead_is_what_the_runs_have() -> None:
    arms = set(OmegaConf.load(ROOT / "conf" / "study" / "which_choice.yaml").arms)
    losses, distances = ([values(seed, key) for seed in (0, 1)] for key in ("val/diffusion", "final/fd/cifar_cnn"))
    assert (set(losses[0]), arms - set(losses[1])) == (arms, {"stride_32"})
    for found, places in ((losses, 4), (distances, 1)):
        first, second, third = (
            " and ".join(f"{seed[arm]:.{places}f}" for seed in found) for arm in ("head_linear", "baseline", "control")
        )
        assert f"({first}; baseline {second}, control {third})" in PAGE
    for seed in losses:
        assert min((arm for arm in seed if arm not in OTHER_LOSSES), key=lambda arm: seed[arm]) == "head_linear"
    for seed in distances:
        assert min(seed, key=lambda arm: seed[arm]) == "head_linear"
