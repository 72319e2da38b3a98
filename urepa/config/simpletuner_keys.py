"""What the alignment keys of a SimpleTuner config mean in urepa. docs/simpletuner.md has them side by side, with the
source that they were read from.

`Keys` reads a file's values, one regulariser at a time; `read_alignment` gives the keys of a run that they ask for.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from urepa.core.errors import UserError, did_you_mean

PREFIXES = ("urepa_", "crepa_", "irepa_")
OTHER_ALIGNMENT = {"layersync_enabled": "aligns two of the model's own blocks"}  # flags for which there is no equal
PATCH = 14  # of the DINOv2 that they load from torch.hub, pixels
TEACHERS = {
    "dinov2_vits14": "dinov2_s",
    "dinov2_vitb14": "dinov2_b",
    "dinov2_vitl14": "dinov2_l",
    "dinov2_vitg14": "dinov2_g",
    "dinov2_vitl14_reg": "dinov2_l_registers",
}
ALIASES = {  # of SimpleTuner's own
    "dino_v2_g": "dinov2_vitg14",
    "dinov2_g": "dinov2_vitg14",
    "dinov2-vitg14": "dinov2_vitg14",
    "dino_v2_s": "dinov2_vits14",
    "dinov2_s": "dinov2_vits14",
    "dinov2-vitb14": "dinov2_vitb14",
}
TEACHER_SEES = "data.teacher_sees"  # of tracks with an autoencoder
ENCODERS = ("encoder", "external")  # values of crepa_feature_source
OWN_FEATURES = ("backbone", "internal", "self_flow", "selfflow")
OF_LAMBDA = (
    *("scheduler", "lambda_end", "power", "decay_steps", "cutoff_step"),
    *("similarity_threshold", "similarity_ema_decay", "threshold_mode"),
)
SCHEDULES = ("constant", "linear", "cosine", "polynomial")
OF_VIDEO = (  # of the frames of a video
    *("adjacent_distance", "adjacent_tau", "cumulative_neighbors", "normalize_by_frames", "normalize_neighbour_sum"),
)
OF_MEMORY = ("encoder_frames_batch_size", "drop_vae_encoder")  # without effect on what is computed


@dataclass
class Alignment:
    """What a file asks for.

    Args:
        regulariser: "urepa", or "crepa".
        choices: options by group, `group` or `group@place`.
        keys: values by dotted key.
        tap: the aligned one.
        interpolates: whether tokens are interpolated where the tap and the teacher have different grids.
        asked: which choices and keys come of which of their keys, with its value: (theirs, ours).
        idle: keys of theirs that have no effect here, as they have none there.
    """

    regulariser: str
    choices: dict[str, str] = field(default_factory=dict)
    keys: dict[str, Any] = field(default_factory=dict)
    tap: str = "mid"
    interpolates: bool = True
    asked: list[tuple[str, list[str]]] = field(default_factory=list)
    idle: list[str] = field(default_factory=list)


class Keys:
    """A file's values, by name without dashes; what is null, or empty, is not given, as there."""

    def __init__(self, file: Path) -> None:
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"+simpletuner={file} cannot be read ({error.strerror}); give a config.json") from error
        except ValueError as error:
            raise UserError(f"+simpletuner={file} is no JSON ({error}); give SimpleTuner's config.json") from error
        if not isinstance(content, dict):
            raise UserError(f"+simpletuner={file} holds no keys; give SimpleTuner's config.json")
        self.file = file
        self.values = {k.lstrip("-"): v for k, v in content.items() if v is not None and str(v).strip()}
        self.read: set[str] = set()

    def number(self, name: str, default: float) -> float:
        value = self._value(name, default)
        try:
            if isinstance(value, bool):
                raise ValueError
            return float(value)
        except (ValueError, TypeError):
            raise UserError(f"{self.file}: {name}={value} is no number; correct it") from None

    def whole(self, name: str, default: int) -> int:
        value = self.number(name, default)
        if value != int(value) or value < 0:
            raise UserError(f"{self.file}: {name}={value:g} is no whole number from 0 on; correct it")
        return int(value)

    def flag(self, name: str, default: bool) -> bool:
        value = str(self._value(name, default)).strip().lower()
        if value not in ("true", "false"):
            raise UserError(f"{self.file}: {name}={value} is neither true nor false; correct it")
        return value == "true"

    def choice(self, name: str, default: str, options: tuple[str, ...]) -> str:
        value = str(self._value(name, default)).strip()
        if value.lower() not in options:
            near = did_you_mean(value, options)
            raise UserError(f"{self.file}: {name}={value} has no equal; there are {', '.join(options)}{near}")
        return value.lower()

    def has(self, name: str) -> bool:
        return name in self.values

    def pass_over(self, *names: str) -> list[str]:
        """Those of these keys that are given; they need no equal."""
        self.read.update(names)
        return [name for name in names if name in self.values]

    def refuse(self, name: str, why: str) -> UserError:
        return UserError(f"{self.file}: {name}={self.values.get(name)} {why}; take it out of the file")

    def _value(self, name: str, default: Any) -> Any:
        self.read.add(name)
        return self.values.get(name, default)


def read_alignment(keys: Keys) -> Alignment:
    """What the file asks for. UserError where it has no alignment, two of them, or a key that has no equal here."""
    enabled = [name for name in ("urepa", "crepa") if keys.flag(f"{name}_enabled", False)]
    if len(enabled) == 2:
        raise UserError(
            f"{keys.file} enables both urepa and crepa, and a backbone takes one of them: disable the other"
        )
    if not enabled:
        raise UserError(
            f"{keys.file} enables neither urepa nor crepa, so there is nothing to take; to train without, loss=none"
        )
    for name, what in OTHER_ALIGNMENT.items():
        if keys.flag(name, False):
            raise keys.refuse(name, f"{what}, for which there is no equal")
    found = Alignment(enabled[0])
    _loss(keys, found)
    _teacher(keys, found)
    _schedule(keys, found)
    _spatial(keys, found)
    if found.regulariser == "crepa":
        if of_video := keys.pass_over(*(f"crepa_{name}" for name in OF_VIDEO)):
            raise keys.refuse(of_video[0], "is for the frames of a video, and this trains on images")
        found.idle += keys.pass_over(*(f"crepa_{name}" for name in OF_MEMORY))
    own = (f"{found.regulariser}_", *(("irepa_",) if keys.flag("irepa_enabled", False) else ()))
    for name in keys.values:
        if name.startswith(own) and name not in keys.read:
            raise keys.refuse(name, "has no equal")
    return found


def _ask(found: Alignment, theirs: str, *ours: tuple[str, Any]) -> None:
    """Keys, or with a plain name choices of a group, that come of a key of theirs."""
    for key, value in ours:
        if "." in key and "@" not in key:
            found.keys[key] = value
        else:
            found.choices[key] = value
    found.asked.append((theirs, [key for key, _ in ours]))


def _loss(keys: Keys, found: Alignment) -> None:
    """λ, w, the warm-up, the tap and their projector, LayerNorm and a dense layer."""
    name = found.regulariser
    loss = "urepa_token" if name == "urepa" else "repa"
    _ask(found, f"{name}_enabled", ("loss", loss), ("head", "layer_norm_linear"))
    _ask(found, f"{name}_lambda", ("loss.lambda_max", keys.number(f"{name}_lambda", 0.5)))
    if name == "urepa":
        _ask(found, "urepa_manifold_weight", ("loss.manifold_weight", keys.number("urepa_manifold_weight", 3.0)))
    else:
        found.tap = f"block_{keys.whole('crepa_block_index', 8)}"
        _ask(found, "crepa_block_index", ("loss.taps", found.tap))
    _ask(found, f"{name}_warmup_steps", ("loss.warmup_steps", keys.whole(f"{name}_warmup_steps", 0)))


def _teacher(keys: Keys, found: Alignment) -> None:
    """The encoder; a U-REPA without one of its own takes CREPA's, as there. They keep all of its tokens."""
    name = found.regulariser
    names = ("urepa_model", "crepa_model", "crepa_encoder") if name == "urepa" else ("crepa_model", "crepa_encoder")
    given = next((one for one in names if keys.has(one)), names[0])
    keys.pass_over(*names)
    hub = str(keys.values.get(given, "dinov2_vitg14")).strip()
    hub = ALIASES.get(hub.lower(), hub)
    if hub not in TEACHERS:
        raise keys.refuse(given, f"has no equal among the teachers; there are {', '.join(TEACHERS)}")
    size = keys.whole(f"{name}_encoder_image_size", 518)
    if size % PATCH or not size:
        raise keys.refuse(f"{name}_encoder_image_size", f"is no multiple of the encoder's patch of {PATCH} pixels")
    side = size // PATCH
    _ask(found, given, ("teacher", TEACHERS[hub]))
    _ask(found, f"{name}_encoder_image_size", ("teacher.image_size", size), ("teacher.grid", [side, side]))
    if name == "crepa":
        source = keys.choice("crepa_feature_source", "encoder", (*ENCODERS, *OWN_FEATURES))
        sources = {
            "crepa_use_backbone_features": keys.flag("crepa_use_backbone_features", False),
            "crepa_self_flow": keys.flag("crepa_self_flow", False),
            "crepa_feature_source": source not in ENCODERS,
        }
        for key, is_own in sources.items():
            if is_own:
                raise keys.refuse(key, "takes the model's own features as the teacher, for which there is no equal")
        own = [one for one in keys.values if one.startswith(("crepa_self_flow_", "crepa_teacher_block"))]
        found.idle += keys.pass_over(*own)
    sees = "tae_decoded" if keys.flag(f"{name}_use_tae", False) else "decoded"
    _ask(found, f"{name}_use_tae", (TEACHER_SEES, sees))


def _schedule(keys: Keys, found: Alignment) -> None:
    """λ after its warm-up. Their end is a weight, ours a share of λ."""
    name = found.regulariser
    peak = found.keys["loss.lambda_max"]
    kind = keys.choice(f"{name}_scheduler", "constant", SCHEDULES)
    end, power = keys.number(f"{name}_lambda_end", 0.0), keys.number(f"{name}_power", 1.0)
    steps, stop = keys.whole(f"{name}_decay_steps", 0), keys.whole(f"{name}_cutoff_step", 0)
    threshold = f"{name}_similarity_threshold"
    decay = keys.number(f"{name}_similarity_ema_decay", 0.99)
    mode = keys.choice(f"{name}_threshold_mode", "permanent", ("permanent", "recoverable"))
    keys.pass_over(threshold)
    if kind != "constant" and end > peak:
        raise keys.refuse(f"{name}_lambda_end", f"is more than {name}_lambda={peak:g}, and λ does not rise here")
    if peak == 0:
        found.idle += keys.pass_over(*(f"{name}_{one}" for one in OF_LAMBDA))
        return
    shape: list[tuple[str, list[tuple[str, Any]]]] = []
    if kind != "constant":
        shape = [
            (f"{name}_lambda_end", [("final", end / peak)]),
            (f"{name}_decay_steps", [("decay_steps", steps if steps else None)]),
        ]
    if kind == "polynomial":
        shape.append((f"{name}_power", [("power", power)]))
    place = "schedule"
    if keys.has(threshold):
        _ask(found, threshold, ("schedule", "similarity_cutoff"), ("schedule.threshold", keys.number(threshold, 1.0)))
        _ask(found, f"{name}_similarity_ema_decay", ("schedule.ema_decay", decay))
        _ask(found, f"{name}_threshold_mode", ("schedule.recoverable", mode == "recoverable"))
        _ask(found, f"{name}_scheduler", ("schedule@schedule.shape", kind))
        place = "schedule.shape"
    else:
        _ask(found, f"{name}_scheduler", ("schedule", kind))
        found.idle += keys.pass_over(f"{name}_similarity_ema_decay", f"{name}_threshold_mode")
    for theirs, ours in shape:
        _ask(found, theirs, *((f"{place}.{key}", value) for key, value in ours))
    unused = [] if shape else [f"{name}_lambda_end", f"{name}_decay_steps"]
    found.idle += keys.pass_over(*unused, *([] if kind == "polynomial" else [f"{name}_power"]))
    _ask(found, f"{name}_cutoff_step", ("schedule.stop_step", stop if stop else None))


def _spatial(keys: Keys, found: Alignment) -> None:
    """Grids: the larger of the two is interpolated to the smaller. iREPA's convolution and normalisation."""
    found.interpolates = found.regulariser == "urepa" or keys.flag("crepa_spatial_align", True)
    theirs = "crepa_spatial_align" if found.regulariser == "crepa" else "urepa_enabled"
    _ask(found, theirs, ("loss.grid", "smaller"))
    if keys.flag("irepa_enabled", False):
        if keys.whole("irepa_projector_kernel_size", 3) != 3:
            raise keys.refuse("irepa_projector_kernel_size", "has no equal: the convolution is 3x3")
        _ask(found, "irepa_enabled", ("head", "irepa"))
        share = keys.number("irepa_spatial_norm_alpha", 0.6)
        _ask(found, "irepa_spatial_norm_alpha", ("loss.spatial_norm", share))
