"""What may stand side by side: which settings a metric rests on, and which settings keep seeds paired.

Reasons are config keys, so that the report can name them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from urepa.comparison.runs import as_text
from urepa.runs import is_identity

OBJECTIVE = ("objective",)  # ε or v, and β: they set a diffusion loss's scale
TOKENS = ("loss._target_", "loss.taps", "teacher", "data.token_dtype")
MANIFOLD = (*TOKENS, "loss.level")
WEIGHTS = ("loss.lambda_max", "loss.manifold_weight", "loss.manifold_clip", "loss.diffusion_fraction")
TOTAL = (*OBJECTIVE, *MANIFOLD, *WEIGHTS)
RESTS_ON = {"total": TOTAL, "diffusion": OBJECTIVE, "token": TOKENS, "cosine": TOKENS, "manifold": MANIFOLD}
NOISE_LEVELS = ("objective.beta_start", "objective.beta_end", "objective.beta_schedule", "objective.timesteps")

# Of `data`, what is for training alone; all else says what is validated on.
TRAINING_DATA = (
    "data.name",
    "data.limit",
    "data.train_images",
    "data.train",
    "data.cfg_dropout",
    "data.online_teacher",
    "data.token_dtype",
    "data.tokens",
    "data.moments",
    "data.max_skipped",
)
# Arms that differ in these did not see the same data and noise, although their seeds are the same.
UNPAIRS = (
    "data.limit",
    "data.train_images",
    "data.train",
    "data.moments",
    "data.max_skipped",
    "trainer.max_steps",
    "trainer.batch_size",
    "objective.timesteps",
)


@dataclass(frozen=True)
class Metric:
    """A column: the logged key, what it is called, and which way is better ("" where nobody can say)."""

    key: str
    label: str
    better: str = ""

    @property
    def title(self) -> str:
        """The label with an arrow."""
        return f"{self.label}\u00a0{self.better}" if self.better else self.label


VALIDATION = (
    Metric("val/total", "total loss", "↓"),
    Metric("val/diffusion", "diffusion loss", "↓"),
    Metric("val/token", "token loss", "↓"),
    Metric("val/manifold", "manifold loss", "↓"),
    Metric("val/x0_error", "x0 error", "↓"),
)
EVALUATION = (
    Metric("final/tap_knn", "k-NN on the tap", "↑"),
    Metric("final/tap_linear_probe", "linear probe of the tap", "↑"),
    Metric("final/samples_named_rightly", "samples named rightly", "↑"),
)
REFERENCES = ("floor/", "final/pixel_", "final/teacher_")  # say nothing about an arm
REFERENCE_LABELS = {
    "floor/zero_predictor": "diffusion loss of predicting zero",
    "floor/constant_token": "token loss of the best constant token",
    "final/pixel_knn": "k-NN on pixels",
    "final/teacher_knn": "k-NN on the teacher's tokens",
}


def metrics_of(keys: set[str]) -> list[Metric]:
    """The columns for the keys that some run has, in the document's order; unknown evaluations after the known."""
    known = [m for m in (*VALIDATION, *EVALUATION) if m.key in keys]
    names = {m.key for m in known}
    others = sorted(k for k in keys if k.startswith("final/") and k not in names and not is_reference(k))
    return known + [Metric(k, k.removeprefix("final/").replace("_", " ")) for k in others]


def is_reference(key: str) -> bool:
    """Is this a floor or a ceiling, the same for all arms?"""
    return key.startswith(REFERENCES)


def bins_of(keys: set[str], term: str) -> list[str]:
    """The keys of a validation term by timestep bin, in the order of t."""
    return sorted(k for k in keys if k.startswith(f"val/{term}_by_t/"))


def differing(config: dict[str, str], other: dict[str, str], prefixes: tuple[str, ...]) -> list[str]:
    """Keys at or below one of the prefixes whose values differ."""
    keys = {k for k in config.keys() | other.keys() if any(k == p or k.startswith(f"{p}.") for p in prefixes)}
    return sorted(k for k in keys if config.get(k) != other.get(k) and is_identity(k))


def obstacles(key: str, config: dict[str, str], baseline: dict[str, str]) -> list[str]:
    """Settings that forbid to set this arm's value of `key` beside the baseline's; none: it is comparable."""
    if key.split("/")[0] not in ("train", "val"):
        return []
    term = key.split("/")[1].removesuffix("_by_t")
    return differing(config, baseline, RESTS_ON.get(term, ()))


def at_other_noise(config: dict[str, str], baseline: dict[str, str]) -> list[str]:
    """Settings of β: with another one, the same timestep is another noise level."""
    return differing(config, baseline, NOISE_LEVELS)


def unpaired_by(config: dict[str, str], baseline: dict[str, str]) -> list[str]:
    """Settings by which an arm did not see what the baseline of the same seed saw."""
    return differing(config, baseline, UNPAIRS)


def protocol(config: dict[str, str], facts: dict[str, Any]) -> dict[str, str]:
    """What a run was measured on and how: only runs that agree in all of it are compared. A summary knows better
    than the config: which images validated, and how a finished run was evaluated since."""
    evaluation = as_text({"evaluation": facts["evaluation"]}) if "evaluation" in facts else {}
    told = {k: v for k, v in config.items() if not k.startswith("evaluation")} | evaluation if evaluation else config
    kept = {
        key: value
        for key, value in told.items()
        if is_identity(key)
        and (key == "trainer.validation_group" or key.startswith(("data.", "evaluation")))
        and key not in TRAINING_DATA
    }
    return kept | {"validation images": facts.get("validation_set", f"those of {config.get('data.name')}")}
