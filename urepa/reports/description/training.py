"""Words for losses, tracks and optimisers. Keys of WORDS are `_target_`s."""

from __future__ import annotations

from typing import Any

from urepa.core.descriptions import Formula, number, shape
from urepa.core.text_tables import Table
from urepa.method.diffusion_fraction import strata
from urepa.reports.description.markdown_and_latex import Block, join_with_and
from urepa.reports.description.subject import Subject

DIFFUSION = r"\mathcal{L}_{\mathrm{diff}} = \mathbb{E}\, \frac{1}{CHW} \lVert f_\theta(x_t, t, c) - y \rVert_2^2"
TOKEN = (
    r"\mathcal{L}_{\mathrm{token}} = \mathbb{E}\, \Bigl[ 1 - \frac{1}{N} \sum_{n=1}^{N}"
    r" \cos\bigl( h(z)_n, \tau_n \bigr) \Bigr]"
)
LEVELS = {
    "sample": (
        r"\frac{1}{B (B - 1)} \sum_{i \ne j} \bigl( \hat h_i \cdot \hat h_j"
        r" - \hat\tau_i \cdot \hat\tau_j \bigr)^2"
    ),
    "token": (
        r"\mathbb{E}\, \frac{1}{N (N - 1)} \sum_{m \ne n} \bigl( h(z)_m \cdot h(z)_n - \tau_m \cdot \tau_n \bigr)^2"
    ),
}
COMPARED = {
    "sample": "the pooled tokens (hats: unit vectors along a sample's mean token) of all samples of the global batch",
    "token": "the tokens within each sample",
}


def diffusion_only(s: Subject, part: dict[str, Any]) -> list[Block]:
    return [
        "The loss is the diffusion term alone: nothing is aligned, and there is neither teacher nor head.",
        Formula(rf"\mathcal{{L}} = {DIFFUSION}"),
    ]


def alignment(s: Subject, part: dict[str, Any]) -> list[Block]:
    """The formulas of `urepa.method.losses`, weighted as the composed loss weighs them."""
    has_diffusion = part["diffusion_fraction"] > 0
    terms = r"\mathcal{L}_{\mathrm{diff}} + " if has_diffusion else ""
    manifold = r"\mathcal{L}_{\mathrm{manifold}}"
    if part["manifold_clip"] is not None:
        manifold = rf"\min(\mathcal{{L}}_{{\mathrm{{manifold}}}}, {number(part['manifold_clip'])})"
    total = rf"\mathcal{{L}} = {terms}\lambda(s) \bigl[ \mathcal{{L}}_{{\mathrm{{token}}}} + w\, {manifold} \bigr]"
    levels = [
        LEVELS[level] if weight == 1 else rf"{number(weight)} \cdot {LEVELS[level]}"
        for level, weight in s.loss.levels.items()
    ]
    return [
        f"The loss adds alignment terms with the weight λ at update s and w = {number(part['manifold_weight'])}; h(z) "
        "are a tap's tokens behind its head, τ the teacher's, and over several taps the alignment terms are averaged "
        "with their shares.",
        Formula(total),
        *([Formula(DIFFUSION)] if has_diffusion else []),
        Formula(TOKEN),
        Formula(rf"\mathcal{{L}}_{{\mathrm{{manifold}}}} = {' + '.join(levels)}"),
        f"The manifold term compares {join_with_and([COMPARED[level] for level in s.loss.levels])}."
        + (" As w = 0, it is logged and not trained on." if part["manifold_weight"] == 0 else ""),
        *token_normalisation(part["spatial_norm"]),
        weight_of_alignment(s, part),
        *after_stop(part["stop_step"]),
        *by_time(part["time_power"]),
        *fraction(part["diffusion_fraction"]),
    ]


def token_normalisation(share: float | None) -> list[Block]:
    """How the teacher's tokens are normalised, if at all."""
    if share is None:
        return []
    return [
        f"The teacher's tokens are normalised over each image's places first, channel by channel: less {number(share)} "
        "of their mean, over their standard deviation."
    ]


def weight_of_alignment(s: Subject, part: dict[str, Any]) -> str:
    """λ over the run, as the loss itself gives it."""
    warmup, last, lam = part["warmup_steps"], s.planned.settings.max_steps - 1, number(part["lambda_max"])
    until = "" if part["stop_step"] is None else f" until update {number(part['stop_step'])}, from which on it is 0"
    if part["lambda_max"] == 0:
        return (
            "λ = 0 throughout: the control, which computes and logs the alignment terms and learns nothing from them."
        )
    if warmup == 0:
        return f"λ = {lam} from the first update on{until}."
    rises = f"λ rises linearly from 0 to {lam} over the first {number(warmup)} updates"
    if last < warmup:
        return f"{rises}, of which this run makes {number(last + 1)}: it ends at λ = {s.loss.lam(last):.4g}{until}."
    return f"{rises} and stays there{until}."


def after_stop(stop: int | None) -> list[Block]:
    """What is left of the alignment then."""
    if stop is None:
        return []
    return [
        f"From update {number(stop)} on training neither asks the teacher nor computes the alignment terms; "
        "validations still do both, to see whether the alignment lasts."
    ]


def by_time(power: float) -> list[Block]:
    """λ over a sample's time."""
    if power == 0:
        return []
    return [
        "In the loss, though not in the token loss that is reported, λ is multiplied for each sample by g(t) with "
        "α and σ the shares of x0 and noise in x_t, and the mean over the times that are trained at:",
        Formula(
            rf"g(t) = u(t)^{{{number(power)}}} / \operatorname{{E}}[u(t)^{{{number(power)}}}], \qquad "
            r"u(t) = \frac{\alpha(t)}{\alpha(t) + \sigma(t)}"
        ),
    ]


def fraction(share: float) -> list[Block]:
    """Which samples have a diffusion term."""
    p, q = strata(share)
    if p == q:
        return []
    if p == 0:
        return [
            "No sample has a diffusion term: the forward pass ends at the deepest tap, and what follows it is frozen."
        ]
    return [f"{p} of every {q} samples, drawn anew at each update, have a diffusion term; all are aligned."]


SPLITS = {"train": "training", "val": "validation", "test": "test"}


# --- data ---------------------------------------------------------------------------------------------------


def pixel_track(s: Subject, part: dict[str, Any]) -> list[Block]:
    size, f = part["image_size"], part["unshuffle"]
    source = f"source {part['source']}"
    cut = "is" if f == 1 else f"is pixel-unshuffled by {f} to"
    return [
        f"{part['name']} ({source}): {splits(s)}, in {number(part['num_classes'])} classes, each split class-balanced. "
        f"The central square at {size}×{size} pixels with {part['channels']} channel(s) {cut} "
        f"x0 of {shape(s.track.latent_shape)} in [−{number(part['scale'])}, {number(part['scale'])}]. {draws(part)}"
    ]


def latent_track(s: Subject, part: dict[str, Any]) -> list[Block]:
    size = part["image_size"]
    posterior = "a sample of its posterior, drawn anew in training" if part["moments"] else "its posterior's mode"
    when = "in training, anew each time," if part["online_latents"] else "once"
    text = "" if part["text"] is None else f", and the classes' prompts by the text encoder of {part['text']}"
    return [
        f"{part['name']} (source {part['source']}): {splits(s)}, in {number(part['num_classes'])} classes. Central "
        f"squares at {size}×{size} pixels are encoded {when} by the VAE of {part['vae']} to latents of "
        f"{shape(s.track.latent_shape)} ({posterior}, times its scaling factor){text}. {draws(part)}"
    ]


def splits(s: Subject) -> str:
    """How many images are where."""
    return join_with_and([f"{number(n)} {SPLITS[split]} images" for split, n in s.planned.counted.samples.items()])


def draws(part: dict[str, Any]) -> str:
    flipped = (
        " Training images are mirrored with probability 0.5, for backbone and teacher alike." if part["flip"] else ""
    )
    return f"A training sample loses its class with probability {number(part['cfg_dropout'])}.{flipped}"


# --- optimiser ----------------------------------------------------------------------------------------------


def adamw(s: Subject, part: dict[str, Any]) -> list[Block]:
    settings = s.planned.settings
    warmup = round(part["warmup_ratio"] * settings.max_steps)
    clip = (
        "Gradients are not clipped."
        if settings.clip_norm is None
        else (f"Gradients are clipped to a global norm of {number(settings.clip_norm)}.")
    )
    rows = tuple(
        (group, number(parameters), number(part["lr"][group]), number(part["weight_decay"][group]))
        for group, (parameters, _) in s.planned.counted.groups.items()
    )
    return [
        f"AdamW with β1 = {number(part['betas'][0])}, β2 = {number(part['betas'][1])} and ε = {number(part['eps'])}. "
        f"The learning rates {rates(warmup, part['final_ratio'], settings.max_steps)}. {clip}",
        *rate_formula(warmup, part["final_ratio"], settings.max_steps),
        Table("Optimiser groups.", ("group", "parameters", "peak learning rate", "weight decay"), rows),
    ]


def rates(warmup: int, final: float, steps: int) -> str:
    """The learning rates over the run."""
    rise = f"rise linearly over the first {number(warmup)} updates and " if warmup else ""
    if final == 1:
        return f"{rise}stay at their peaks"
    return f"{rise}fall along half a cosine to {number(final)} of their peaks at update {number(steps)}"


def rate_formula(warmup: int, final: float, steps: int) -> list[Block]:
    """The same as a formula; none for rates that never change."""
    if warmup == 0 and final == 1:
        return []
    since, over = ("(s - W)", "S - W") if warmup else ("s", "S")
    cosine = rf"r + \frac{{1 - r}}{{2}} \bigl( 1 + \cos \frac{{\pi {since}}}{{{over}}} \bigr)"
    after = "1" if final == 1 else cosine
    shape = (
        rf"\begin{{cases}} s / W & s < W \\ {after} & s \ge W \end{{cases}}" if warmup else rf"\Bigl[ {after} \Bigr]"
    )
    where = [rf"W = {warmup}"] * (warmup > 0) + [rf"S = {steps}, \quad r = {number(final)}"] * (final < 1)
    return [Formula(rf"\eta(s) = \eta_{{\max}} {shape}, \qquad " + r", \quad ".join(where))]


WORDS = {
    "urepa.method.training_step.DiffusionOnly": diffusion_only,
    "urepa.method.training_step.AlignmentLoss": alignment,
    "urepa.data.tracks.pixels.PixelTrack": pixel_track,
    "urepa.data.tracks.latents.LatentTrack": latent_track,
    "urepa.training.optimizer.AdamW": adamw,
}
