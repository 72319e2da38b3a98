"""What may stand side by side: which settings a metric rests on, and which settings keep seeds paired.

Reasons are config keys, so that the report can name them.
"""

from __future__ import annotations

from typing import cast

from urepa.config.parts import KINDS
from urepa.core.ema_initial_weights import SHARE
from urepa.core.protocols import Metric as Metric
from urepa.runs.run_folder import is_identity

DURING = "eval/"  # evaluations in the course of training
GRADIENT_COSINE = "/grad_cosine"  # at a tap
SKIPPED = "guard/skipped_steps"
RATE = "images_per_s"  # between two logging steps: what the time of training is known from
OBJECTIVE = ("objective",)  # ε or v, and β: they set a diffusion loss's scale
TOKENS = ("loss._target_", "loss.taps", "loss.teachers", "loss.spatial_norm", "teacher", "data.token_dtype")
MANIFOLD = (*TOKENS, "loss.level")
WEIGHTS = (
    "loss.lambda_max",
    "loss.manifold_weight",
    "loss.manifold_clip",
    "loss.diffusion_fraction",
    "loss.stop_step",
    "loss.time_power",
)
TOTAL = (*OBJECTIVE, *MANIFOLD, *WEIGHTS)
DROPOUT, ALWAYS = "data.cfg_dropout", ("1", "1.0")  # of the class, and a probability of 1 as text
TIMES = ("objective.draw",)  # of which a mean over all times is one; by timestep bin it is not
RESTS_ON = {
    "total": TOTAL,
    "diffusion": OBJECTIVE,
    "token": TOKENS,
    "cosine": TOKENS,
    "manifold": MANIFOLD,
    "x0_error": (),
}
# What is measured against the teacher's own tokens, at whatever tap; a head's fit also to what the loss made of them.
OF_TEACHER = ("teacher", "data.token_dtype")
OF_FIT = (*OF_TEACHER, "loss.spatial_norm")
ALIGNMENT_RESTS_ON = {
    "token_cosine": OF_FIT,
    "token_cosine_above_constant": OF_FIT,
    "similarity_mae": OF_FIT,
    "neighbour_recall": OF_FIT,
    "cka": OF_TEACHER,
    "cknna": OF_TEACHER,
}
NOISE_LEVELS = (
    "objective.beta_start",
    "objective.beta_end",
    "objective.beta_schedule",
    "objective.timesteps",
    "objective.path",
)

# Arms that differ in these did not see the same data and noise, although their seeds are the same.
UNPAIRS = (
    "data.limit",
    "data.train_images",
    "data.train",
    "data.moments",
    "data.max_skipped",
    "data.flip",
    "data.content.train",
    "data.content.samples",
    "data.content.latents",
    "trainer.max_steps",
    "trainer.batch_size",
    "objective.timesteps",
    "objective.draw",
)


VALIDATION = (
    Metric("val/total", "total loss", "↓"),
    Metric("val/diffusion", "diffusion loss", "↓"),
    Metric("val/token", "token loss", "↓"),
    Metric("val/manifold", "manifold loss", "↓"),
    Metric("val/x0_error", "x0 error", "↓"),
)
OF_ALIGNMENT = (
    Metric("final/token_cosine", "token cosine", "↑"),
    Metric("final/token_cosine_above_constant", "token cosine above the best constant", "↑"),
    Metric("final/similarity_mae", "MAE of sample similarities", "↓"),
    Metric("final/neighbour_recall", "nearest-neighbour recall", "↑"),
    Metric("final/cka", "CKA of the tap", "↑"),
    Metric("final/cknna", "CKNNA of the tap", "↑"),
)
OF_READERS = tuple(
    Metric(f"final/{reader}/{what}{pooling}{top}", f"{name}: {what}{', attention' * bool(pooling)}{rank}", "↑")
    for reader, name in (("knn", "k-NN"), ("linear_probe", "linear probe"))
    for what in ("tap", "head")
    for pooling in ("", "_attention")
    for top, rank in (("", ""), ("_top5", ", top 5"))
)
OF_TOKENS = tuple(
    Metric(f"final/{measure}/{what}", f"{name}: {what}", better)
    for measure, name, better in (("dense", "mIoU", "↑"), ("lds", "LDS", ""), ("cds", "CDS", ""), ("rmsc", "RMSC", ""))
    for what in ("tap", "head")
)
EVALUATION = (
    Metric("final/tap_knn", "k-NN on the tap", "↑"),
    Metric("final/tap_linear_probe", "linear probe of the tap", "↑"),
    *OF_READERS,
    *OF_ALIGNMENT,
    *OF_TOKENS,
    Metric("final/samples_named_rightly", "samples named rightly", "↑"),
    Metric("final/inception_score", "Inception Score", "↑"),
    Metric("final/clip_score", "CLIP score", "↑"),
)
OF_ENCODERS = (("fd", "FD", "↓"), ("kid", "KID", "↓"), ("precision", "precision", "↑"), ("recall", "recall", "↑"))
REFERENCES = (  # say nothing about an arm
    *("floor/", "final/fd_se/", "final/pixel_", "final/teacher_", "final/untrained_", "final/random_"),
    *(
        f"final/{reader}/{what}"
        for reader in ("knn", "linear_probe", "dense", "lds", "cds", "rmsc")
        for what in ("teacher", "untrained", "random")
    ),
)
# What else is read as the arms are, a row of the table below them
READ_BESIDE = {
    "teacher": "the teacher's tokens",
    "untrained": "the untrained model",
    "random": "the same of random weights",
    "pixel": "pixels",
}
REFERENCE_LABELS = {
    "floor/zero_predictor": "diffusion loss of predicting zero",
    "floor/constant_token": "token loss of the best constant token",
    "final/pixel_knn": "k-NN on pixels",
    "final/teacher_knn": "k-NN on the teacher's tokens",
}


def is_compared(key: str) -> bool:
    """Is the metric in a table, a figure or a remark? Learning rates and norms are not, and are not kept."""
    compared = key.startswith(("train/", "val/", "final/", "floor/", DURING)) or key.endswith(GRADIENT_COSINE)
    return compared or key in (SHARE, SKIPPED, RATE)


def metrics_of(keys: set[str]) -> list[Metric]:
    """The columns for the keys that some run has, in the document's order; unknown evaluations after the known."""
    known = [m for m in (*VALIDATION, *EVALUATION) if m.key in keys] + _of_encoders(keys)
    names = {m.key for m in known}
    others = sorted(k for k in keys if k.startswith("final/") and k not in names and not is_beside(k))
    return known + [_other(key) for key in others]


def _other(key: str) -> Metric:
    """The column that an evaluation declares, of one that declares none, or of a known one's value at another tap."""
    for evaluation in KINDS["evaluation"].values():
        for metric in getattr(evaluation, "metrics", ()):
            if metric.key == key:
                return cast(Metric, metric)
    base, _, tap = key.rpartition("/")
    for metric in OF_ALIGNMENT:
        if metric.key == base:
            return Metric(key, f"{metric.label} ({tap})", metric.better)
    return Metric(key, key.removeprefix("final/").replace("_", " "))


def _of_encoders(keys: set[str]) -> list[Metric]:
    """FD(pixels) and its like: what is measured in an encoder's features bears the encoder's name. In the features of
    a run's own teacher it is circular, and so is the column."""
    found = []
    for encoder in sorted(k.removeprefix("final/fd/") for k in keys if k.startswith("final/fd/")):
        mark = ", circular" if f"final/circular/{encoder}" in keys else ""
        for kind, label, better in OF_ENCODERS:
            if f"final/{kind}/{encoder}" in keys:
                found.append(Metric(f"final/{kind}/{encoder}", f"{label}({encoder}{mark})", better))
    return found


def is_beside(key: str) -> bool:
    """Does the key say something about another column, and has none of its own?"""
    if "_by_t/" in key:
        return True
    return is_reference(key) or key.startswith(("final/circular/", "final/floor/")) or key.split("/")[1].endswith("_sd")


def reference_label(key: str) -> str:
    """What a reference is called."""
    for kind, label, _ in OF_ENCODERS:
        if key.startswith(f"floor/{kind}/"):
            return f"{label}({key.removeprefix(f'floor/{kind}/')}) of held-out images"
    for prefix, whose in (("final/fd_se/", "one run's images"), ("floor/fd_se/", "held-out images")):
        if key.startswith(prefix):
            return f"standard error of FD({key.removeprefix(prefix)}) over resamplings of {whose}"
    return REFERENCE_LABELS.get(key, key)


def reference_key(key: str, kind: str) -> str:
    """The reference of this kind (of `READ_BESIDE`) that is read as the metric `key` is; it may not be there."""
    path, _, last = key.rpartition("/")
    if kind in ("untrained", "random"):
        return f"{path}/{kind}_{last}"
    source = last.split("_")[0]
    return f"{path}/{kind}{last.removeprefix(source)}" if source in ("tap", "head") else ""


def is_reference(key: str) -> bool:
    """Is this a floor or a ceiling, the same for all arms?"""
    return key.startswith(REFERENCES)


def bins_of(keys: set[str], term: str) -> list[str]:
    """The keys of a validation term by timestep bin, in the order of t."""
    return sorted(k for k in keys if k.startswith(f"val/{term}_by_t/"))


def differing_keys(config: dict[str, str], other: dict[str, str], prefixes: tuple[str, ...]) -> list[str]:
    """Keys at or below one of the prefixes whose values differ."""
    keys = {k for k in config.keys() | other.keys() if any(k == p or k.startswith(f"{p}.") for p in prefixes)}
    return sorted(k for k in keys if config.get(k) != other.get(k) and is_identity(k))


def incomparable_keys(key: str, config: dict[str, str], baseline: dict[str, str]) -> list[str]:
    """The settings that make this arm's value of `key` incomparable with the baseline's; empty if it is comparable."""
    kind, _, rest = key.partition("/")
    term = rest.split("/")[0]
    if kind == "final":
        return differing_keys(config, baseline, ALIGNMENT_RESTS_ON.get(term, ()))
    if kind not in ("train", "val"):
        return []
    rests_on = RESTS_ON.get(term.removesuffix("_by_t"))
    if rests_on is None:
        return []
    if key == "train/total":  # at every step's own λ, and so are its curve's points
        rests_on = (*rests_on, "loss.warmup_steps")
    if not term.endswith("_by_t"):
        rests_on = (*rests_on, *TIMES)
    return sorted(differing_keys(config, baseline, rests_on) + _by_class(config, baseline))


def _by_class(config: dict[str, str], baseline: dict[str, str]) -> list[str]:
    """The dropout where one of the two always trains without the class and the other does not: their losses, with and
    without the class, are two quantities."""
    never, never_there = (of.get(DROPOUT) in ALWAYS for of in (config, baseline))
    return [DROPOUT] if never != never_there else []


def noise_schedule_keys(config: dict[str, str], baseline: dict[str, str]) -> list[str]:
    """The differing settings of β or of the flow's path: the same timestep then has another noise level."""
    return differing_keys(config, baseline, NOISE_LEVELS)


def unpairing_keys(config: dict[str, str], baseline: dict[str, str]) -> list[str]:
    """The settings that make an arm see other data, noise or times than the baseline of the same seed."""
    return differing_keys(config, baseline, UNPAIRS)
