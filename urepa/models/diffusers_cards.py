"""Code for model cards that loads exports in diffusers' layout."""

from __future__ import annotations

import json

from urepa.core.descriptions import CardFacts, code_block
from urepa.core.hub_names import is_hub_id, resolve
from urepa.models.backbones.backbone_sizes import KOHYA, LORA, PEFT, TRAINED_ROWS

WITH_LORA = """\
from diffusers import DDIMScheduler, StableDiffusionPipeline

folder = "."  # this one
pipe = StableDiffusionPipeline.from_pretrained({base}, safety_checker=None)
pipe.scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
pipe.load_lora_weights(folder{file})
image = pipe("a photo of a golden retriever", negative_prompt="", guidance_scale=4.0).images[0]
"""
KOHYA_FILE = f', weight_name="{KOHYA}"'
IN_COMFYUI = (
    f"`{KOHYA}` has the layout of kohya-ss's sd-scripts. ComfyUI and WebUIs load it from their folder of LoRAs, at "
    "strength 1, onto the base model; or diffusers:"
)
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
rows = load_file(f"{{folder}}/embedding.safetensors")["embedding_KLE"]  # one per class, the null condition last
x = torch.randn(1, {shape})
scheduler.set_timesteps({steps})
with torch.no_grad():
    for t in scheduler.timesteps:
        x = scheduler.step(unet(x, t, rows[:1]).sample, t, x).prev_sample
"""

BY_TEXT = """\
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file

folder = "."  # this one
unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
null = load_file(f"{{folder}}/embedding.safetensors")
# for a caption use its tokens [1, L, D], mask [1, L] and vector [1, P] from `data.text_encoder` in the config below
tokens, mask, vector = null["null_D"][None, None], torch.ones(1, 1, dtype=torch.bool), null["null_P"][None]
x = torch.randn(1, {shape})
scheduler.set_timesteps({steps})
with torch.no_grad():
    for t in scheduler.timesteps:
        out = unet(x, t, tokens, class_labels=vector, encoder_attention_mask=mask).sample
        x = scheduler.step(out, t, x).prev_sample
"""


WITH_LORA_BY_TEXT = """\
from diffusers import DDIMScheduler, {pipeline}

folder = "."  # this one
pipe = {pipeline}.from_pretrained({base})
pipe.scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
pipe.load_lora_weights(folder{file})
{call}"""
FULL_BY_TEXT = """\
from diffusers import DDIMScheduler, {pipeline}, UNet2DConditionModel

folder = "."  # this one
unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
pipe = {pipeline}.from_pretrained({base}, unet=unet)
pipe.scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
{call}"""
CALL = """\
# Guidance needs the null condition of training (data.text_encoder in the config below): zeros, which a pipeline with
# force_zeros_for_empty_prompt uses without a negative_prompt, or the empty prompt, which is negative_prompt="".
image = pipe("a photo of a golden retriever", guidance_scale=5.0, height={height}, width={width}).images[0]
"""


def captioned_card(facts: CardFacts, base: str | None, pipeline: str) -> str:
    """Code that loads a captioned U-Net's export into a pipeline of diffusers, as Markdown.

    Args:
        base: the weights that training began with; None: random ones.
    """
    _, height, width = facts.latent_shape
    known = {"base": _base_name(base), "pipeline": pipeline, "call": CALL.format(height=8 * height, width=8 * width)}
    if KOHYA in facts.files:
        return f"{IN_COMFYUI}\n\n{code_block(WITH_LORA_BY_TEXT.format(file=KOHYA_FILE, **known), 'python')}"
    if LORA in facts.files:
        return code_block(WITH_LORA_BY_TEXT.format(file="", **known), "python")
    return code_block(FULL_BY_TEXT.format(**known), "python")


def _base_name(base: str | None) -> str:
    """A Python string: the hub id, or a placeholder for a folder."""
    return json.dumps(resolve(base)[0] if base is not None and is_hub_id(base) else "FOLDER OF THE BASE MODEL")


def diffusers_card(facts: CardFacts, base: str | None, by_condition: str = BY_CLASS) -> str:
    """Code that loads a U-Net's export and makes an image, as Markdown.

    Args:
        base: the weights that training began with; None: random ones.
        by_condition: the code for a U-Net whose condition embeddings were trained too.
    """
    name = _base_name(base)
    if LORA in facts.files:
        return code_block(WITH_LORA.format(base=name, file=""), "python")
    if KOHYA in facts.files:
        return f"{IN_COMFYUI}\n\n{code_block(WITH_LORA.format(base=name, file=KOHYA_FILE), 'python')}"
    if TRAINED_ROWS not in facts.files:
        return code_block(FULL.format(base=name), "python")
    timesteps = facts.timesteps
    assert timesteps is not None, "U-Nets trained with a flow objective are not exported"
    steps = max(n for n in range(1, min(50, timesteps) + 1) if timesteps % n == 0)
    return code_block(by_condition.format(shape=", ".join(map(str, facts.latent_shape)), steps=steps), "python")


TRANSFORMER_LORA = """\
from diffusers import {pipeline}

pipe = {pipeline}.from_pretrained({base})
pipe.load_lora_weights(".")  # this folder
{call}"""
TRANSFORMER_PEFT = """\
from diffusers import {pipeline}
from peft import PeftModel

pipe = {pipeline}.from_pretrained({base})
pipe.transformer = PeftModel.from_pretrained(pipe.transformer, ".").merge_and_unload()  # this folder
{call}"""
TRANSFORMER_FULL = """\
from diffusers import {pipeline}, {network}

transformer = {network}.from_pretrained(".", subfolder="transformer")  # this folder
pipe = {pipeline}.from_pretrained({base}, transformer=transformer)
{call}"""
TRANSFORMER_CALL = 'image = pipe("a photo of a golden retriever", height={height}, width={width}).images[0]\n'


def transformer_card(facts: CardFacts, base: str | None, pipeline: str, network: str, vae_factor: int) -> str:
    """Code that loads a transformer's export into a pipeline of diffusers, as Markdown.

    Args:
        base: the weights that training began with; None: random ones.
        pipeline, network: classes of diffusers. vae_factor: pixels of a side of a latent pixel.
    """
    _, height, width = facts.latent_shape
    call = TRANSFORMER_CALL.format(height=vae_factor * height, width=vae_factor * width)
    code = TRANSFORMER_LORA if LORA in facts.files else TRANSFORMER_PEFT if PEFT[0] in facts.files else TRANSFORMER_FULL
    return code_block(code.format(pipeline=pipeline, network=network, base=_base_name(base), call=call), "python")
