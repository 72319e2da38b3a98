"""Words for what is measured after training. Keys of WORDS are `_target_`s."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from urepa.core.descriptions import number
from urepa.reports.description.markdown_and_latex import Block, join_with_and
from urepa.reports.description.subject import Subject

SAMPLERS = {"ddim": "DDIM", "dpmsolver": "DPM-Solver++(2M)", "euler": "Euler", "heun": "Heun", "sde": "Euler-Maruyama"}


def sample_grid(s: Subject, part: dict[str, Any]) -> list[Block]:
    classes = min(part["max_classes"], s.track.num_classes)
    guided = "without guidance" if part["guidance"] == 1 else f"at guidance {number(part['guidance'])}"
    named = f" A k-NN (k = {part['knn']}) fitted to the training images names them." if part["knn"] is not None else ""
    return [
        f"Samples: {part['per_class']} images of each of {number(classes)} classes by {sampler(s, None)} in "
        f"{part['sampler_steps']} steps {guided}.{named}"
    ]


def tap_probe(s: Subject, part: dict[str, Any]) -> list[Block]:
    return [
        f"Probe: the tap {part['tap']}, mean-pooled, at t = {part['timestep']} under the null condition; a k-NN (k = "
        f"{part['knn']}, cosine) and a linear probe fitted to {number(part['train_images'])} training images and read "
        f"on {number(part['test_images'])} test images."
    ]


def knn(s: Subject, part: dict[str, Any]) -> list[Block]:
    return [frozen_features(s, part, f"k-NN (k = {part['k']}, cosine)")]


def linear_probe(s: Subject, part: dict[str, Any]) -> list[Block]:
    return [frozen_features(s, part, "linear probe (logistic regression, C = 0.1, on standardised features)")]


def frozen_features(s: Subject, part: dict[str, Any], reader: str) -> str:
    """What both readers read."""
    read = f"the tap {part['tap']}" + (" and its head, below the teacher's own tokens" if s.loss.taps else "")
    return (
        f"A {reader} of {read} and above the model before training, mean- and attention-pooled, at {times(part)} under "
        f"the null condition: fitted to {number(part['train_images'])} training images at most and read on "
        f"{number(part['test_images'])} held-out ones at most."
    )


def times(part: dict[str, Any]) -> str:
    """t = 500, or t = 50, 200 and 500."""
    return f"t = {join_with_and(list(map(str, sorted({part['timestep'], *part['timesteps']}))))}"


def teacher_alignment(s: Subject, part: dict[str, Any]) -> list[Block]:
    return [
        f"Alignment of the tap {part['tap']} with the teacher on {number(part['images'])} held-out images at most, at "
        f"{times(part)}: token cosine (also above the best constant token's), the mean absolute error of sample "
        f"similarities and the recall of the teacher's {part['neighbours']} nearest neighbours behind the head; linear "
        f"CKA and CKNNA (k = {part['neighbours']}) of the tap."
    ]


def generation(s: Subject, part: dict[str, Any]) -> list[Block]:
    encoders = join_with_and([f"{name} ({encoder(settings)})" for name, settings in part["encoders"].items()])
    real = "all" if part["reference_images"] is None else number(part["reference_images"])
    return [
        f"Generated images: {generated_images(s, part['images'])}, compared with {real} training images in the "
        f"features of {encoders}. Fréchet distance over all of them, with its standard error by a jackknife over "
        f"tenths of {number(part['subset'])} of the images; on {number(part['subset'])} of either kind KID "
        f"({part['kid_subsets']} subsets of {number(part['kid_subset_size'])}), precision and recall "
        f"({part['neighbours']} neighbours)."
    ]


def inception_score(s: Subject, part: dict[str, Any]) -> list[Block]:
    name = encoder(part["encoder"])
    return [f"Inception Score: {generated_images(s, part['images'])}, by {name}, in {part['splits']} splits."]


def generated_images(s: Subject, part: dict[str, Any]) -> str:
    guided = "without guidance" if part["guidance"] == 1 else f"at guidance {number(part['guidance'])}"
    low, high = part.get("interval", (0, 1))  # settings of before it have none
    at = "" if (low, high) == (0, 1) else f" for t from {number(low)} to {number(high)}"
    return f"{number(part['count'])} by {sampler(s, part['sampler'])} in {part['steps']} steps {guided}{at}"


def sampler(s: Subject, name: str | None) -> str:
    """A sampler's name; None: the objective's usual one."""
    return SAMPLERS[s.objective.samplers[0] if name is None else name]


def clip_score(s: Subject, part: dict[str, Any]) -> list[Block]:
    asked = f"the prompts of the classes named in {Path(part['class_names']).name}"
    return [f"CLIP score: {generated_images(s, part['images'])}, against {asked}, by {part['model']}."]


def spatial(s: Subject, part: dict[str, Any]) -> list[Block]:
    return [
        f"Spatial structure of the tap {part['tap']} and its head at t = {part['timestep']} on "
        f"{number(part['images'])} held-out images at most, between the teacher and the model before training: LDS "
        f"(slope up to {number(part['decay'])} of the grid's largest distance), CDS (tokens are distant from "
        f"{number(part['far'])} of it on) and RMSC."
    ]


def dense(s: Subject, part: dict[str, Any]) -> list[Block]:
    above = "" if part["teacher"] is None else f", below {encoder(part['teacher'])}"
    return [
        f"Linear segmentation of the tap {part['tap']} and its head at t = {part['timestep']} under the null "
        f"condition, above the model before training{above}: mIoU, fitted to {number(part['train_images'])} "
        f"images at most and read on {number(part['test_images'])} at most."
    ]


def encoder(part: dict[str, Any]) -> str:
    """What it is, and the weights or settings that make it another one."""
    name = part["_target_"].rpartition(".")[2]
    weights = next((Path(part[key]).name for key in ("model", "weights") if key in part), None)
    return name if weights is None else f"{name}, {weights}"


WORDS = {
    "urepa.evaluation.clip_score.ClipScore": clip_score,
    "urepa.evaluation.spatial_structure.Spatial": spatial,
    "urepa.evaluation.segmentation.Dense": dense,
    "urepa.evaluation.sample_grid.SampleGrid": sample_grid,
    "urepa.evaluation.probes.TapProbe": tap_probe,
    "urepa.evaluation.probes.Knn": knn,
    "urepa.evaluation.probes.LinearProbe": linear_probe,
    "urepa.evaluation.teacher_agreement.Alignment": teacher_alignment,
    "urepa.evaluation.image_distances.Generation": generation,
    "urepa.evaluation.image_distances.InceptionScore": inception_score,
}
