"""Families of transformers that diffusers publishes, each at a size for tests. A new family is an entry of CASES."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from urepa.core.conditions import Condition
from urepa.core.part_names import LAYERS, POOLED, TEXT
from urepa.method.objectives.ddpm_math import EpsilonMath
from urepa.method.objectives.flow_shifted_math import (
    ShiftedFlowMath,
    SizeShiftedFlowMath,
    StepShiftedFlowMath,
)
from urepa.method.objectives.objective_math import ObjectiveMath


@dataclass(frozen=True)
class Tiny:
    """A family at a size for tests.

    Args:
        settings: of its declaration, but for weights. fixed: fields of config.json that are no settings.
        latent, square: shapes of x0, the first one a rectangle.
        call: what its pipeline is called with for a condition and the one without a caption; `guidance_scale` is 3.
        scheduler: the pipeline's. has_mask: whether the mask of a text counts. sees_padding: whether attention sees
            masked tokens, as 0. scale: of classifier-free guidance.
        parts: of the pipeline beside transformer, vae and scheduler, all None.
        output: the layers that take the last block's tokens and give the values of patches. after_text: whether the
        image tokens come after a text's own there. sign: of the prediction in these values.
        layers: how many of a language model are stacked. of_pipe: attributes of the pipeline.
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
    sees_padding: bool = False
    scale: float = 3.0
    sampler: str = "euler"
    guided: dict[str, float] = field(default_factory=lambda: {"guidance_scale": 3.0})
    of_pipeline: dict[str, Any] = field(default_factory=dict)
    unpack: bool = False
    output: tuple[str, str] = ("norm_out", "proj_out")
    after_text: bool = False
    sign: int = 1
    layers: int = 0
    of_pipe: dict[str, Any] = field(default_factory=dict)


def _pooled(own: Condition, null: Condition) -> dict[str, Any]:
    return {
        **{"prompt_embeds": own[TEXT].tokens_BLD, "pooled_prompt_embeds": own[POOLED].vector_BD},
        "negative_prompt_embeds": null[TEXT].tokens_BLD,
        "negative_pooled_prompt_embeds": null[POOLED].vector_BD,
    }


def _tokens(own: Condition, null: Condition) -> dict[str, Any]:
    embeds = {"prompt_embeds": own[TEXT].tokens_BLD, "negative_prompt_embeds": null[TEXT].tokens_BLD}
    return {"negative_prompt": None, **embeds}


def _masked(own: Condition, null: Condition) -> dict[str, Any]:
    return {
        **{"prompt_embeds": own[TEXT].tokens_BLD, "prompt_attention_mask": own[TEXT].mask_BL},
        "negative_prompt": None,
        "negative_prompt_embeds": null[TEXT].tokens_BLD,
        "negative_prompt_attention_mask": null[TEXT].mask_BL,
    }


def _zeroed(own: Condition, null: Condition) -> dict[str, Any]:
    called = _masked(own, null)
    for name in ("prompt", "negative_prompt"):
        called[f"{name}_embeds"] = called[f"{name}_embeds"] * called[f"{name}_attention_mask"][:, :, None]
    return called


def _text_alone(own: Condition, null: Condition) -> dict[str, Any]:
    return {"prompt_embeds": own[TEXT].tokens_BLD}


def _two_texts(own: Condition, null: Condition) -> dict[str, Any]:
    return {**_text_alone(own, null), "negative_prompt_embeds": null[TEXT].tokens_BLD}


def _layered(own: Condition, null: Condition) -> dict[str, Any]:
    return {
        **{"prompt_embeds_t5": own[TEXT].tokens_BLD, "negative_prompt_embeds_t5": null[TEXT].tokens_BLD},
        "prompt_embeds_llama3": own[LAYERS].layers_BSLD.transpose(0, 1),
        "negative_prompt_embeds_llama3": null[LAYERS].layers_BSLD.transpose(0, 1),
        "pooled_prompt_embeds": own[POOLED].vector_BD,
        "negative_pooled_prompt_embeds": null[POOLED].vector_BD,
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
OF_FLUX2: dict[str, Any] = {
    "fixed": {"attention_head_dim": 16, "axes_dims_rope": (4, 4, 4, 4), "in_channels": 8},
    "latent": (8, 4, 6),
    "widths": {TEXT: 32},
    "objective": StepShiftedFlowMath(
        "logit_normal", 0.0, 1.0, (8.73809524e-05, 1.89833333, 10), (0.00016927, 0.45666666, 200), 4300, 1
    ),
    "scheduler": _flow_scheduler(use_dynamic_shifting=True),
    "parts": ("text_encoder", "tokenizer"),
    "has_mask": False,
}
FLUX2 = {"num_layers": 2, "num_single_layers": 2, "num_attention_heads": 4, "joint_attention_dim": 32}
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
    "chroma": Tiny(
        {
            **{"num_layers": 2, "num_single_layers": 2, "num_attention_heads": 4},
            **{"approximator_hidden_dim": 32, "approximator_layers": 2},
        },
        {"attention_head_dim": 16, "axes_dims_rope": (4, 6, 6), "joint_attention_dim": 32},
        (16, 8, 12),
        {TEXT: 32},
        SizeShiftedFlowMath("logit_normal", 0.0, 1.0, 0.5, 1.15, 256, 4096, 2),
        _masked,
        _flow_scheduler(use_dynamic_shifting=True),
        "ChromaPipeline",
        ("text_encoder", "tokenizer"),
        unpack=True,
    ),
    "auraflow": Tiny(
        {"num_mmdit_layers": 2, "num_single_dit_layers": 2, "num_attention_heads": 4, "pos_embed_max_size": 64},
        {"attention_head_dim": 16, "joint_attention_dim": 32, "sample_size": 16},
        (4, 8, 12),
        {TEXT: 32},
        ShiftedFlowMath("logit_normal", 0.0, 1.0, 1.73, "scheduler"),
        _zeroed,
        _flow_scheduler(shift=1.73),
        "AuraFlowPipeline",
        ("tokenizer", "text_encoder"),
        sees_padding=True,
    ),
    "flux2": Tiny(
        FLUX2 | {"guidance": 3.5, "guidance_embeds": True},
        call=_text_alone,
        pipeline="Flux2Pipeline",
        scale=1.0,
        guided={"guidance_scale": 3.5},
        **OF_FLUX2,
    ),
    "flux2_klein": Tiny(
        FLUX2 | {"guidance": None, "guidance_embeds": False}, call=_two_texts, pipeline="Flux2KleinPipeline", **OF_FLUX2
    ),
    "ovis_image": Tiny(
        {"num_layers": 2, "num_single_layers": 2, "num_attention_heads": 4},
        {"attention_head_dim": 16, "axes_dims_rope": (4, 6, 6), "joint_attention_dim": 32},
        (16, 8, 12),
        {TEXT: 32},
        SizeShiftedFlowMath("logit_normal", 0.0, 1.0, 0.5, 1.15, 256, 4096, 2),
        _tokens,
        _flow_scheduler(use_dynamic_shifting=True),
        "OvisImagePipeline",
        ("text_encoder", "tokenizer"),
        has_mask=False,
        unpack=True,
    ),
    "lumina2": Tiny(
        {
            **{"num_refiner_layers": 1, "num_layers": 3, "hidden_size": 72, "num_attention_heads": 3},
            **{"num_kv_heads": 1, "axes_dim_rope": [8, 8, 8], "axes_lens": [16, 16, 16]},
        },
        {"cap_feat_dim": 32, "multiple_of": 16},
        (16, 8, 12),
        {TEXT: 32},
        ShiftedFlowMath("logit_normal", 0.0, 1.0, 6.0, "even"),
        _masked,
        _flow_scheduler(shift=6.0),
        "Lumina2Pipeline",
        ("tokenizer", "text_encoder"),
        of_pipeline={"cfg_normalization": False},
        output=("norm_out", "norm_out.linear_2"),
        after_text=True,
        sign=-1,
    ),
    "hidream": Tiny(
        {
            **{"num_layers": 2, "num_single_layers": 2, "num_attention_heads": 4, "llama_layers": [0, 1, 2, 2]},
            "max_resolution": [12, 14],
        },
        {
            **{"patch_size": 2, "in_channels": 16, "out_channels": 16, "axes_dims_rope": (4, 6, 6)},
            **{"caption_channels": (32, 20), "attention_head_dim": 16, "text_emb_dim": 24},
        },
        (16, 8, 18),
        {TEXT: 32, LAYERS: 20, POOLED: 24},
        ShiftedFlowMath("logit_normal", 0.0, 1.0, 3.0, "scheduler"),
        _layered,
        _flow_scheduler(shift=3.0),
        "HiDreamImagePipeline",
        tuple(f"{part}{n}" for part in ("text_encoder", "tokenizer") for n in ("", "_2", "_3", "_4")),
        has_mask=False,
        output=("final_layer", "final_layer.linear"),
        sign=-1,
        layers=3,
        of_pipe={"default_sample_size": 12},  # of the square of as many pixels
    ),
}
FAMILY = {"sd35": "sd3", "pixart_alpha": "pixart", "flux2_klein": "flux2"}  # of cases that are no declarations
