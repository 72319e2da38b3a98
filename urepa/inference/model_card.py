"""The README.md of exported weights: the claim, how to load them, what the scheduler must be, metrics and config."""

from __future__ import annotations

import json
import re
import shlex
import warnings
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from urepa.config.declared import declaration_of
from urepa.core.escaping import markdown
from urepa.core.hub_names import is_hub_id, resolve
from urepa.core.text_tables import Table
from urepa.inference.published_weights import family, training_command
from urepa.runs.metrics import Rows
from urepa.runs.run_folder import Names, stored_names, teacher_name
from urepa.runs.summary import read_summary
from urepa.training.provenance import class_names

EXPERIMENTS = Path(__file__).resolve().parents[2] / "conf"
LISTED = 200  # classes
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
scheduler.set_timesteps({steps})
with torch.no_grad():
    for t in scheduler.timesteps:
        x = scheduler.step(unet(x, t, rows[:1]).sample, t, x).prev_sample
"""

SIT = """\
python -m urepa.generate checkpoint=FOLDER {command} guidance=1.8          # this folder
python -m urepa.train {command} backbone.weights=FOLDER/model.safetensors  # a run that begins with it
"""


def model_card(run: Path, step: int, config: dict[str, Any], config_yaml: str, files: list[str]) -> str:
    """The card of a run's weights at a step. What comes from names is escaped."""
    names = stored_names(run)
    title = f"{markdown(names.experiment)} · {markdown(names.arm)} · seed {config['seed']} · step {step}"
    parts = [
        f"---\n{front_matter(config, files)}---",
        f"# {title}",
        *config_comments(names.experiment, names.ablation),
        f"{training_text(config)} EMA weights of step {step} of {config['trainer']['max_steps']}.",
        "## Use",
        sit_snippet(names, config) if "model.safetensors" in files else code_block(snippet(config, files), "python"),
        declaration_of(config["objective"]).model_card(),
        *class_section(class_names(run, config["data"]["num_classes"])),
        "## Files",
        "\n".join(f"- {markdown(name)}" for name in [*files, "README.md"]),
        "## Metrics",
        metrics_table(run, step),
        "## Config",
        code_block(config_yaml, "yaml"),
    ]
    return "\n\n".join(parts) + "\n"


def class_section(names: list[str]) -> list[str]:
    """A section with the class names by id; none if the classes have no names."""
    lines = [f"- {i}: {markdown(name)}" for i, name in enumerate(names[:LISTED])]
    rest = [f"- and {len(names) - LISTED} more, in classes.json"] if len(names) > LISTED else []
    return ["## Classes", "\n".join(lines + rest)] if names else []


def sit_snippet(names: Names, config: dict[str, Any]) -> str:
    """How to load a SiT with this project and with others."""
    parts = training_command(names.experiment, names.overrides)
    if config["data"]["source"] == "folder" and not any(part.startswith("data.num_classes=") for part in parts):
        parts.append(f"data.num_classes={config['data']['num_classes']}")  # it was counted where the images lay
    command = " ".join(shlex.quote(part) for part in parts)
    return (
        f"{code_block(SIT.format(command=command), 'bash')}\n\nNames and shapes are those of the published SiT and "
        "REPA checkpoints, without projectors."
    )


def code_block(code: str, language: str) -> str:
    """A fenced Markdown code block, with a fence longer than any in the code."""
    longest = max((len(ticks) for ticks in re.findall("`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{code.rstrip()}\n{fence}"


def front_matter(config: dict[str, Any], files: list[str]) -> str:
    """What model hubs read."""
    is_sit = "model.safetensors" in files
    about: dict[str, Any] = {"tags": ["urepa", "sit"]} if is_sit else {"library_name": "diffusers", "tags": ["urepa"]}
    if config["loss"].get("lambda_max", 0) > 0:
        about["tags"] += ["representation-alignment"]
    if "pytorch_lora_weights.safetensors" in files:
        about["tags"] += ["lora"]
    weights = config["backbone"].get("weights", "random")
    if is_hub_id(weights):
        about["base_model"] = resolve(weights)[0]
    return OmegaConf.to_yaml(OmegaConf.create(about))


def config_comments(experiment: str, ablation: str) -> list[str]:
    """The comments at the head of the experiment's and the ablation's files."""
    found = []
    for group, name in (("experiment", experiment), ("ablation", ablation)):
        if name == "baseline":  # no ablation was asked for
            continue
        file = EXPERIMENTS / group / f"{name}.yaml"
        if re.fullmatch(r"[\w-]+", name) and file.is_file():
            head = [line for line in file.read_text().splitlines() if line.startswith("# ") and "@package" not in line]
            found.append("\n".join(f"> {markdown(line.removeprefix('# '))}  " for line in head))
    return found


def training_text(config: dict[str, Any]) -> str:
    """One sentence: what was trained, and what it was aligned to."""
    lora, loss = config["lora"], config["loss"]
    trained = f"The whole {'transformer' if family(config) == 'sit' else 'U-Net'} was trained"
    if "rank" in lora:
        trained = (
            f"LoRA of rank {lora['rank']} ({markdown(lora['targets'])}, blocks: {markdown(lora['blocks'])}) was trained"
        )
    if "taps" not in loss:
        return f"{trained}, without alignment."
    taps = ", ".join(markdown(tap) for tap in loss["taps"])
    to = markdown(teacher_name(config["teacher"]))
    if loss["lambda_max"] == 0:
        return f"{trained} without alignment: the terms at {taps}, to {to}, have the weight λ = 0 (the control)."
    return f"{trained}, aligned at {taps} to {to} with λ = {loss['lambda_max']:g} and w = {loss['manifold_weight']:g}."


def snippet(config: dict[str, Any], files: list[str]) -> str:
    """Code that loads the weights and makes an image."""
    weights = config["backbone"].get("weights", "random")
    base = json.dumps(resolve(weights)[0] if is_hub_id(weights) else "FOLDER OF THE BASE MODEL")
    if "pytorch_lora_weights.safetensors" in files:
        return LORA.format(base=base)
    if "embedding.safetensors" in files:
        channels = config["data"]["channels"] * config["data"]["unshuffle"] ** 2
        side = config["data"]["image_size"] // config["data"]["unshuffle"]
        timesteps = config["objective"]["timesteps"]
        steps = max(n for n in range(1, min(50, timesteps) + 1) if timesteps % n == 0)
        return BY_CLASS.format(shape=f"{channels}, {side}, {side}", steps=steps)
    return FULL.format(base=base)


def metrics_table(run: Path, step: int) -> str:
    """The last value of each metric up to the step, from summary.json if that is of this step."""
    summary = read_summary(run)
    finished = summary is not None and summary["step"] == step
    rows = Rows(run / "metrics.jsonl")
    upto = {k: v for row in rows if row["step"] <= step for k, v in row.items()} if not finished else {}
    metrics: dict[str, Any] = summary["metrics"] if summary is not None and finished else upto
    of_the_model = [k for kind in ("val/", "final/", "floor/", "train/") for k in sorted(metrics) if k.startswith(kind)]
    shown = {k: metrics[k] for k in of_the_model if "_by_t/" not in k and metrics[k] is not None}  # null: taken back
    table = Table("", ("metric", "value"), tuple((key, f"{float(value):.5g}") for key, value in shown.items()))
    note = [] if finished else ["The run was not finished: these are the last values up to this step.", ""]
    if damage := rows.damage():
        warnings.warn(f"the card of {run} is made of what can be read of its metrics: {damage}", stacklevel=2)
        note[0] += " Some could not be read, so later ones may be missing."
    return "\n".join([*note, table.markdown()])
