"""The README.md of exported weights: the claim, how to load them, what the scheduler must be, metrics and config."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from urepa.hub import is_hub_id, resolve
from urepa.metrics import read_rows
from urepa.runs import stored_names

EXPERIMENTS = Path(__file__).resolve().parents[1] / "conf"
TARGETS = {"DDPMVelocity": "v", "DDPMEpsilon": "epsilon"}
LORA = """\
from diffusers import DDIMScheduler, StableDiffusionPipeline

folder = "."  # this one
pipe = StableDiffusionPipeline.from_pretrained({base}, safety_checker=None)
pipe.scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
pipe.load_lora_weights(folder)
image = pipe("a photo of a golden retriever", negative_prompt="", guidance_scale=4.0).images[0]
"""
FULL = """\
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

folder = "."  # this one
unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
pipe = StableDiffusionPipeline.from_pretrained({base}, unet=unet, safety_checker=None)
pipe.scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
image = pipe("a photo of a golden retriever", negative_prompt="", guidance_scale=4.0).images[0]
"""
BY_CLASS = """\
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file

folder = "."  # this one
unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
rows = load_file(f"{{folder}}/embedding.safetensors")["embedding_KLE"]  # one a class, the null condition last
x = torch.randn(1, {shape})
scheduler.set_timesteps(50)
with torch.no_grad():
    for t in scheduler.timesteps:
        x = scheduler.step(unet(x, t, rows[:1]).sample, t, x).prev_sample
"""


def model_card(run: Path, step: int, config: dict[str, Any], config_yaml: str, files: list[str]) -> str:
    """The card of a run's weights at a step. What comes from names is escaped."""
    experiment, ablation = stored_names(run)
    title = f"{plain(experiment)} · {plain(ablation)} · seed {config['seed']} · step {step}"
    objective = config["objective"]
    target = TARGETS[objective["_target_"].rpartition(".")[2]]
    parts = [
        f"---\n{front_matter(config, files)}---",
        f"# {title}",
        *claims(experiment, ablation),
        f"{what_trained(config)} EMA weights of step {step} of {config['trainer']['max_steps']}.",
        "## Use",
        fenced(snippet(config, files), "python"),
        f"**The model predicts {target}**, with {plain(objective['beta_schedule'])} β from {objective['beta_start']} "
        f"to {objective['beta_end']} over {objective['timesteps']} timesteps. `scheduler/` says so; another scheduler "
        "class is made from its config with `from_config`. A pipeline's own scheduler may say otherwise, and then "
        "gives noise.",
        "## Files",
        "\n".join(f"- {plain(name)}" for name in [*files, "README.md"]),
        "## Metrics",
        metrics_table(run, step),
        "## Config",
        fenced(config_yaml, "yaml"),
    ]
    return "\n\n".join(parts) + "\n"


def plain(text: object) -> str:
    """Text that Markdown and HTML leave as it is, on one line."""
    line = " ".join(str(text).split())
    return re.sub(r"([\\`*_\[\]<>|~&$#!])", r"\\\1", line)


def fenced(code: str, language: str) -> str:
    """A code block that nothing in the code can end."""
    longest = max((len(ticks) for ticks in re.findall("`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{code.rstrip()}\n{fence}"


def front_matter(config: dict[str, Any], files: list[str]) -> str:
    """What model hubs read."""
    about: dict[str, Any] = {"library_name": "diffusers", "tags": ["urepa", "representation-alignment"]}
    if "pytorch_lora_weights.safetensors" in files:
        about["tags"] += ["lora"]
    weights = config["backbone"].get("weights", "random")
    if is_hub_id(weights):
        about["base_model"] = resolve(weights)[0]
    return OmegaConf.to_yaml(OmegaConf.create(about))


def claims(experiment: str, ablation: str) -> list[str]:
    """What the experiment's and the ablation's files say of themselves: the comments at their heads."""
    found = []
    for group, name in (("experiment", experiment), ("ablation", ablation)):
        file = EXPERIMENTS / group / f"{name}.yaml"
        if re.fullmatch(r"[\w-]+", name) and file.is_file():
            head = [line for line in file.read_text().splitlines() if line.startswith("# ") and "@package" not in line]
            found.append("\n".join(f"> {plain(line.removeprefix('# '))}  " for line in head))
    return found


def what_trained(config: dict[str, Any]) -> str:
    """One sentence: what was trained, and what it was aligned to."""
    lora, loss = config["lora"], config["loss"]
    trained = "The whole U-Net was trained"
    if "rank" in lora:
        trained = f"LoRA of rank {lora['rank']} ({plain(lora['targets'])}, blocks: {plain(lora['blocks'])}) was trained"
    if "taps" not in loss:
        return f"{trained}, without alignment."
    teacher = config["teacher"].get("model", config["teacher"]["_target_"].rpartition(".")[2])
    taps = ", ".join(plain(tap) for tap in loss["taps"])
    return (
        f"{trained}, aligned at {taps} to {plain(Path(teacher).name)} with λ = {loss['lambda_max']} and "
        f"w = {loss['manifold_weight']}."
    )


def snippet(config: dict[str, Any], files: list[str]) -> str:
    """Code that loads the weights and makes an image."""
    weights = config["backbone"].get("weights", "random")
    base = json.dumps(resolve(weights)[0] if is_hub_id(weights) else "FOLDER OF THE BASE MODEL")
    if "pytorch_lora_weights.safetensors" in files:
        return LORA.format(base=base)
    if "embedding.safetensors" in files:
        channels = config["data"]["channels"] * config["data"]["unshuffle"] ** 2
        side = config["data"]["image_size"] // config["data"]["unshuffle"]
        return BY_CLASS.format(shape=f"{channels}, {side}, {side}")
    return FULL.format(base=base)


def metrics_table(run: Path, step: int) -> str:
    """The last value of each metric up to the step, from summary.json if that is of this step."""
    file = run / "summary.json"
    summary: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"step": None}
    finished = summary["step"] == step
    rows = [row for row in read_rows(run / "metrics.jsonl") if row["step"] <= step]
    metrics: dict[str, Any] = summary["metrics"] if finished else {k: v for row in rows for k, v in row.items()}
    shown = {k: v for k, v in sorted(metrics.items()) if k not in ("step", "time") and "_by_t/" not in k}
    lines = [f"| {plain(key)} | {plain(f'{float(value):.5g}')} |" for key, value in shown.items()]
    note = [] if finished else ["The run was not finished: these are the last values up to this step.", ""]
    return "\n".join([*note, "| metric | value |", "|---|---|", *lines])
