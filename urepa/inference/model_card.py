"""The README.md of exported weights: the claim, how to load them, the scheduler they need, metrics and config."""

from __future__ import annotations

import json
import re
import shlex
import warnings
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from urepa.config.declared import declaration_of
from urepa.core.backbone_protocols import Backbone, LoRA
from urepa.core.descriptions import CardFacts, code_block
from urepa.core.escaping import markdown
from urepa.core.hub_names import is_hub_id, resolve
from urepa.core.protocols import Loss
from urepa.core.text_tables import Table
from urepa.core.track_protocols import Track
from urepa.inference.published_weights import training_command
from urepa.method.self_alignment import NO_OWN_STATES, own_states
from urepa.models.backbones.backbone_sizes import KOHYA, LORA
from urepa.runs.metrics import Rows
from urepa.runs.run_folder import Names, stored_names, teacher_name
from urepa.runs.summary import read_summary
from urepa.training.checks.sizes import as_shape
from urepa.training.provenance import bucket_names, class_names

EXPERIMENTS = Path(__file__).resolve().parents[2] / "conf"
LISTED = 200  # classes


def model_card(run: Path, step: int, config: dict[str, Any], config_yaml: str, files: list[str]) -> str:
    """The card of a run's weights at a step. Names are escaped."""
    names = stored_names(run)
    backbone: Backbone = declaration_of(config["backbone"])
    parts = [
        f"---\n{front_matter(config, files)}---",
        f"# {title(run, config['seed'], step)}",
        *config_comments(names.experiment, names.ablation),
        f"{training_text(config)} EMA weights of step {step} of {config['trainer']['max_steps']}.",
        "## Use",
        backbone.model_card(card_facts(names, config, files, bucket_shapes(run, config))),
        declaration_of(config["objective"]).model_card(),
        *shape_section(bucket_shapes(run, config)),
        *class_section(class_names(run, config["data"]["num_classes"])),
        "## Files",
        "\n".join(f"- {markdown(name)}" for name in [*files, "README.md"]),
        "## Metrics",
        metrics_table(run, step),
        "## Config",
        code_block(config_yaml, "yaml"),
    ]
    return "\n\n".join(parts) + "\n"


def title(run: Path, seed: int, step: int) -> str:
    """The title of a card: which run, and which step."""
    names = stored_names(run)
    return f"{markdown(names.experiment)} · {markdown(names.arm)} · seed {seed} · step {step}"


def class_section(names: list[str]) -> list[str]:
    """A section with the class names by id; none if the classes have no names."""
    lines = [f"- {i}: {markdown(name)}" for i, name in enumerate(names[:LISTED])]
    rest = [f"- and {len(names) - LISTED} more, in classes.json"] if len(names) > LISTED else []
    return ["## Classes", "\n".join(lines + rest)] if names else []


def bucket_shapes(run: Path, config: dict[str, Any]) -> dict[str, tuple[int, int, int]]:
    """The shape [C,H,W] of x0 in each bucket of the run's data, by its name; without buckets, one of an empty name."""
    track: Track = declaration_of(config["data"])
    shapes = dict(zip(track.bucket_names, map(as_shape, track.latent_shapes), strict=True))
    return {name: shapes[name] for name in bucket_names(run, track.bucket_names)}


def shape_section(shapes: dict[str, tuple[int, int, int]]) -> list[str]:
    """A section with the shapes of the training; none if there are no buckets."""
    if "" in shapes:
        return []
    lines = [f"- `bucket={name}`: x0 of {'×'.join(map(str, x0))}" for name, x0 in shapes.items()]
    text = "Trained on images of these rows and columns in pixels. `urepa.generate` makes the first by default."
    return ["## Shapes", text, "\n".join(lines)]


def card_facts(
    names: Names, config: dict[str, Any], files: list[str], shapes: dict[str, tuple[int, int, int]]
) -> CardFacts:
    """The facts for the backbone's section of the card. `shapes`: the result of `bucket_shapes`."""
    parts = training_command(names.experiment, names.overrides)
    track: Track = declaration_of(config["data"])
    if "" not in shapes:  # the buckets of the data, also with data.buckets=auto
        sizes = json.dumps([list(map(int, name.split("x"))) for name in shapes], separators=(",", ":"))
        parts = [part for part in parts if not part.startswith("data.buckets=")] + [f"data.buckets={sizes}"]
    if track.source == "folder" and not any(part.startswith("data.num_classes=") for part in parts):
        parts.append(f"data.num_classes={config['data']['num_classes']}")  # counted from the images, which are not here
    command = " ".join(shlex.quote(part) for part in parts)
    return CardFacts(tuple(files), command, next(iter(shapes.values())), config["objective"].get("timesteps"))


def front_matter(config: dict[str, Any], files: list[str]) -> str:
    """The YAML front matter, which model hubs read."""
    backbone: Backbone = declaration_of(config["backbone"])
    about = backbone.hub_metadata()
    if declaration_of(config["loss"]).lambda_max > 0:
        about["tags"] += ["representation-alignment"]
    if not {LORA, KOHYA}.isdisjoint(files):
        about["tags"] += ["lora"]
    if backbone.base is not None and is_hub_id(backbone.base):
        about["base_model"] = resolve(backbone.base)[0]
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
    lora: LoRA = declaration_of(config["lora"])
    loss: Loss = declaration_of(config["loss"])
    trained = lora.trained(declaration_of(config["backbone"]).noun)
    own = own_states(loss)
    if own != NO_OWN_STATES:
        states = ", ".join(markdown(tap) for tap in (*own.taps, *own.averaged))
        if loss.lambda_max == 0:
            return f"{trained} without alignment: the term of its own states at {states} has the weight λ = 0."
        name = config["loss"]["_target_"].rpartition(".")[2]
        return f"{trained}, with its own states at {states} in the loss ({name}) with {loss.model_card()}."
    if not loss.taps:
        return f"{trained}, without alignment."
    taps = ", ".join(markdown(tap) for tap in loss.taps)
    to = markdown(teacher_name(config["teacher"]))
    if loss.lambda_max == 0:
        return f"{trained} without alignment: the terms at {taps}, to {to}, have the weight λ = 0 (the control)."
    return f"{trained}, aligned at {taps} to {to} with {loss.model_card()}."


def metrics_table(run: Path, step: int) -> str:
    """The last value of each metric up to the step, from summary.json if that is of this step."""
    summary = read_summary(run)
    finished = summary is not None and summary["step"] == step
    rows = Rows(run / "metrics.jsonl")
    upto = {k: v for row in rows if row["step"] <= step for k, v in row.items()} if not finished else {}
    metrics: dict[str, Any] = summary["metrics"] if summary is not None and finished else upto
    of_the_model = [k for kind in ("val/", "final/", "floor/", "train/") for k in sorted(metrics) if k.startswith(kind)]
    shown = {k: metrics[k] for k in of_the_model if "_by_t/" not in k and metrics[k] is not None}  # null: withdrawn
    table = Table("", ("metric", "value"), tuple((key, f"{float(value):.5g}") for key, value in shown.items()))
    note = [] if finished else ["The run was not finished: these are the last values up to this step.", ""]
    if damage := rows.damage():
        warnings.warn(f"the card of {run} lists only the metrics that can be read: {damage}", stacklevel=2)
        note[0] += " Some could not be read, so later ones may be missing."
    return "\n".join([*note, table.markdown()])
