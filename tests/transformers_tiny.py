"""Small random transformers of the families in transformer_cases.py, their conditions, and their own pipelines around
them.

Shapes: B batch, L text positions, D width of a text token, P width of the pooled vector.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from family_vaes import write_family_vae
from text_folders import write_flux, write_gemma, write_sd3, write_t5
from torch import Tensor, nn
from transformer_cases import CASES as CASES
from transformer_cases import FAMILY as FAMILY

from urepa.config.parts import KINDS
from urepa.core.conditions import Condition, Part
from urepa.core.part_names import LAYERS, POOLED, TEXT

OF_FILES = {"gradient_checkpointing": False}


def declared_of(case: str, weights: str = "random", **changes: Any) -> Any:
    """The declaration of a case. Of random weights its fixed fields are those of the published models."""
    settings = {"weights": weights, **OF_FILES, **CASES[case].settings, **changes}
    return KINDS["backbone"][FAMILY.get(case, case)](**settings)  # type: ignore[call-arg]


def architecture_of(case: str) -> dict[str, Any]:
    """config.json of a case."""
    declared = declared_of(case)
    fixed = CASES[case].fixed
    declared.published = fixed
    architecture: dict[str, Any] = declared.architecture()
    return architecture


def write_tiny(folder: Path, case: str, seed: int = 0, **changes: Any) -> Path:
    """FOLDER/transformer/{config.json,*.safetensors}, as a pipeline's folder has it; `changes` are of config.json."""
    import diffusers

    torch.manual_seed(seed)
    module = getattr(diffusers, declared_of(case).network)(**architecture_of(case) | changes)
    for name, parameter in module.named_parameters():  # so that all of a condition has an effect
        if parameter.ndim == 1 and name.endswith("bias"):
            nn.init.normal_(parameter, std=0.02)
        if case == "auraflow" and ".norm1" in name:  # its modulation has no biases
            parameter.data.mul_(10)
    module.save_pretrained(folder / "transformer")
    return folder


def overrides_of(key: str, settings: Mapping[str, Any]) -> list[str]:
    """Settings of a part as overrides."""

    def written(value: Any) -> str:
        if value is None or isinstance(value, bool):
            return "null" if value is None else str(value).lower()
        return "[" + ",".join(map(str, value)) + "]" if isinstance(value, list) else str(value)

    return [f"{key}.{name}={written(value)}" for name, value in settings.items() if name != "_target_"]


def write_pipeline(folder: Path, case: str) -> list[str]:
    """Writes the family's pipeline with text encoders, VAE and a transformer for their text, all small and random.
    Returns the overrides for them, of a run with the family's own track, backbone and text encoder."""
    family = FAMILY.get(case, case)
    text = WRITE_TEXT[family](folder)
    changes: dict[str, Any] = {TEXT_WIDTHS[family][0]: text.width}
    if POOLED in CASES[case].widths:
        changes[TEXT_WIDTHS[family][1]] = text.pooled_width
    write_tiny(folder, case, **changes)
    write_family_vae(folder, case, CASES[case].latent[0])
    encoder = overrides_of("data.text_encoder", {f.name: getattr(text, f.name) for f in fields(text)})
    return [
        f"data.vae={folder}",
        *encoder,
        *overrides_of("backbone", {"weights": folder, **CASES[case].settings}),
    ]


WRITE_TEXT: dict[str, Callable[[Path], Any]] = {
    **{"sd3": write_sd3, "flux": write_flux, "sana": write_gemma, "pixart": write_t5}
}
# fields of config.json for the widths of a text's tokens and vector
TEXT_WIDTHS = {"sana": ("caption_channels",), "pixart": ("caption_channels",)} | dict.fromkeys(
    ("sd3", "flux"), ("joint_attention_dim", "pooled_projection_dim")
)


def backbone_of(folder: Path, case: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """The backbone of such a folder, for evaluation."""
    tiny = CASES[case]
    known: dict[str, Any] = {"latent_shape": tiny.latent, "num_classes": 0, "widths": tiny.widths}
    return declared_of(case, str(folder), **changes).build_frozen(dtype, **known).eval()


def texts(case: str, *lengths: int, seed: int = 1) -> Condition:
    """Captions of so many tokens each, padded to the longest with other tokens, and a null of two tokens."""
    generator = torch.Generator().manual_seed(seed)
    widths, count, most = CASES[case].widths, len(lengths), max(lengths)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    mask_BL = torch.arange(most) < torch.tensor(lengths)[:, None]
    null_mask_L = torch.arange(most) < 2 if CASES[case].has_mask else torch.ones(most, dtype=torch.bool)
    parts = {TEXT: Part.of(normal(count, most, widths[TEXT]), mask_BL, normal(most, widths[TEXT]), null_mask_L)}
    if LAYERS in widths:
        stacked = CASES[case].layers
        own, null = normal(count, stacked, most, widths[LAYERS]), normal(stacked, most, widths[LAYERS])
        parts[LAYERS] = Part.of(own, mask_BL, null, null_mask_L)
    if POOLED in widths:
        parts[POOLED] = Part.of(normal(count, widths[POOLED]), None, normal(widths[POOLED]))
    return Condition(parts)


def pipeline_of(transformer: Any, case: str, vae: Any) -> Any:
    """The family's own pipeline, without text encoders."""
    import diffusers

    tiny = CASES[case]
    parts = dict.fromkeys(tiny.parts)
    pipe = getattr(diffusers, tiny.pipeline)(transformer=transformer, vae=vae, scheduler=tiny.scheduler(), **parts)
    for name, value in tiny.of_pipe.items():
        setattr(pipe, name, value)
    pipe.set_progress_bar_config(disable=True)
    return pipe
