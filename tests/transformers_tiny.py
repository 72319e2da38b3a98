"""Small random transformers of the families that diffusers publishes, their conditions, and their own pipelines around
them. A new family is an entry of CASES.

Shapes: B batch, L text positions, D width of a text token, P width of the pooled vector.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from photos import write_vae
from text_folders import write_flux, write_gemma, write_sd3, write_t5
from torch import Tensor, nn

from urepa.config.parts import KINDS
from urepa.core.conditions import Condition, Part
from urepa.core.part_names import POOLED, TEXT
from urepa.method.objectives.ddpm_math import EpsilonMath
from urepa.method.objectives.flow_shifted_math import ShiftedFlowMath, SizeShiftedFlowMath
from urepa.method.objectives.objective_math import ObjectiveMath

OF_FILES = {"gradient_checkpointing": False}


@dataclass(frozen=True)
class Tiny:
    """A family at a size for tests.

    Args:
        settings: of its declaration, but for weights. fixed: fields of config.json that are no settings.
        latent, square: shapes of x0, the first one a rectangle.
        call: what its pipeline is called with for a condition and the one without a caption; `guidance_scale` is 3.
        scheduler: the pipeline's. has_mask: whether the mask of a text counts.
        parts: of the pipeline beside transformer, vae and scheduler, all None.
    """

    settings: dict[str, Any]
    fixed: dict[str, Any]
    latent: tuple[int, int, int]
    widths: dict[str, int]
    objective: ObjectiveMath
    call: Callable[[Condition, Condition], dict[str, Any]]
    scheduler: Callable[[], Any]
    pipeline: str
    parts: tuple[str, ...]
    has_mask: bool = True
    sampler: str = "euler"
    guided: dict[str, float] = field(default_factory=lambda: {"guidance_scale": 3.0})
    of_pipeline: dict[str, Any] = field(default_factory=dict)
    unpack: bool = False


def _pooled(own: Condition, null: Condition) -> dict[str, Any]:
    return {
        **{"prompt_embeds": own[TEXT].tokens_BLD, "pooled_prompt_embeds": own[POOLED].vector_BD},
        "negative_prompt_embeds": null[TEXT].tokens_BLD,
        "negative_pooled_prompt_embeds": null[POOLED].vector_BD,
    }


def _masked(own: Condition, null: Condition) -> dict[str, Any]:
    return {
        **{"prompt_embeds": own[TEXT].tokens_BLD, "prompt_attention_mask": own[TEXT].mask_BL},
        "negative_prompt": None,
        "negative_prompt_embeds": null[TEXT].tokens_BLD,
        "negative_prompt_attention_mask": null[TEXT].mask_BL,
    }


def _flow_scheduler(**settings: Any) -> Callable[[], Any]:
    def make() -> Any:
        from diffusers import FlowMatchEulerDiscreteScheduler

        return FlowMatchEulerDiscreteScheduler(**settings)

    return make


PIXART = EpsilonMath(0.0001, 0.02, "linear", 1000)


def _ddim() -> Any:
    from urepa.method.ddpm_sampling import scheduler_for

    return scheduler_for(PIXART, "ddim")


OF_PIXART: dict[str, Any] = {
    "latent": (4, 8, 12),
    "widths": {TEXT: 32},
    "objective": PIXART,
    "call": _masked,
    "scheduler": _ddim,
    "parts": ("tokenizer", "text_encoder"),
    "sampler": "ddim",
    "of_pipeline": {"use_resolution_binning": False},
}
PIXART_FIXED = {"caption_channels": 32, "attention_head_dim": 24}
SIGMA = {"num_layers": 3, "num_attention_heads": 4, "sample_size": 8, "interpolation_scale": 1}
OF_SD3: dict[str, Any] = {
    "fixed": {"attention_head_dim": 16, "joint_attention_dim": 32, "pooled_projection_dim": 24, "sample_size": 16},
    "latent": (16, 8, 12),
    "widths": {TEXT: 32, POOLED: 24},
    "objective": ShiftedFlowMath("logit_normal", 0.0, 1.0, 3.0, "scheduler"),
    "call": _pooled,
    "scheduler": _flow_scheduler(shift=3.0),
    "pipeline": "StableDiffusion3Pipeline",
    "parts": ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3"),
    "has_mask": False,
}
SD3 = {"num_layers": 3, "num_attention_heads": 4, "pos_embed_max_size": 16}
CASES = {
    "sd3": Tiny({**SD3, "dual_attention_layers": [], "qk_norm": None}, **OF_SD3),
    "sd35": Tiny({**SD3, "dual_attention_layers": [0, 1], "qk_norm": "rms_norm"}, **OF_SD3),
    "pixart": Tiny(
        SIGMA | {"use_additional_conditions": False}, PIXART_FIXED, pipeline="PixArtSigmaPipeline", **OF_PIXART
    ),
    "pixart_alpha": Tiny(
        SIGMA | {"sample_size": 128, "use_additional_conditions": None},
        PIXART_FIXED,
        pipeline="PixArtAlphaPipeline",
        **OF_PIXART,
    ),
    "sana": Tiny(
        {
            **{"num_layers": 3, "num_attention_heads": 4, "num_cross_attention_heads": 4},
            **{"cross_attention_head_dim": 16, "cross_attention_dim": 64, "qk_norm": None, "interpolation_scale": None},
        },
        {"attention_head_dim": 16, "caption_channels": 32, "in_channels": 8, "out_channels": 8, "sample_size": 8},
        (8, 4, 6),
        {TEXT: 32},
        ShiftedFlowMath("logit_normal", 0.0, 1.0, 3.0, "scheduler"),
        _masked,
        _flow_scheduler(shift=3.0),
        "SanaPipeline",
        ("tokenizer", "text_encoder"),
        of_pipeline={"use_resolution_binning": False},
    ),
    "flux": Tiny(
        {"guidance": 3.5, "num_layers": 2, "num_single_layers": 2, "num_attention_heads": 4, "guidance_embeds": True},
        {
            **{"attention_head_dim": 16, "axes_dims_rope": (4, 6, 6), "joint_attention_dim": 32},
            "pooled_projection_dim": 24,
        },
        (16, 8, 12),
        {TEXT: 32, POOLED: 24},
        SizeShiftedFlowMath("logit_normal", 0.0, 1.0, 0.5, 1.15, 256, 4096, 2),
        _pooled,
        _flow_scheduler(use_dynamic_shifting=True),
        "FluxPipeline",
        ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"),
        has_mask=False,
        guided={"guidance_scale": 3.5, "true_cfg_scale": 3.0},
        unpack=True,
    ),
}
FAMILY = {"sd35": "sd3", "pixart_alpha": "pixart"}  # of cases that are no declarations


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
    if family == "sana":
        small_dc().save_pretrained(folder / "vae")
    else:
        write_vae(folder, CASES[case].latent[0], **({} if family == "pixart" else {"shift_factor": 0.1}))
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
    if POOLED in widths:
        parts[POOLED] = Part.of(normal(count, widths[POOLED]), None, normal(widths[POOLED]))
    return Condition(parts)


def small_dc() -> Any:
    """A random AutoencoderDC: 8 channels at 1/32."""
    from diffusers import AutoencoderDC

    return AutoencoderDC(
        **{"latent_channels": 8, "encoder_block_out_channels": (8,) * 6, "decoder_block_out_channels": (8,) * 6},
        **{"encoder_layers_per_block": (1,) * 6, "decoder_layers_per_block": (1,) * 6},
        **{"encoder_qkv_multiscales": ((),) * 6, "decoder_qkv_multiscales": ((),) * 6, "attention_head_dim": 8},
        **{"encoder_block_types": "ResBlock", "decoder_block_types": "ResBlock"},
    )


def pipeline_of(transformer: Any, case: str) -> Any:
    """The family's own pipeline, without text encoders."""
    import diffusers
    from diffusers import AutoencoderKL

    tiny = CASES[case]
    vae = AutoencoderKL(norm_num_groups=4, block_out_channels=(8,) * 4)
    if case == "sana":
        vae = small_dc()
    parts = dict.fromkeys(tiny.parts)
    pipe = getattr(diffusers, tiny.pipeline)(transformer=transformer, vae=vae, scheduler=tiny.scheduler(), **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe
