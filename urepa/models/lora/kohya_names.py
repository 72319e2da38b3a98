"""The names that kohya-ss's sd-scripts gives a U-Net's modules in a LoRA file, which ComfyUI and WebUIs read too.

`lora_unet_` and the module's path with underscores. sd-scripts trains SD-1.5 on diffusers' U-Net, and SDXL on one of
its own that is named as Stability's (`networks/lora.py` and `library/sdxl_original_unet.py` at commit 02298e3). ComfyUI
takes either for both (`comfy/lora.py` and `comfy/utils.py` at commit 00728eb).

Both names end in `.lora_down.weight` [r,in] or [r,in,k,k], `.lora_up.weight` [out,r] or [out,r,1,1], `.alpha` [].
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

UNET, TEXT = "lora_unet_", "lora_te"  # `lora_te_`; of SDXL's two encoders `lora_te1_` and `lora_te2_`
DOWN, UP, ALPHA = "lora_down.weight", "lora_up.weight", "alpha"
RESNET = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
MIDDLE = {"resnets.0": "0", "attentions.0": "1", "resnets.1": "2"}
INNER = {"resnets": 0, "attentions": 1}
BLOCK = re.compile(r"(?:(down|up)_blocks\.(\d+)|mid_block)\.(\w+)\.(\d+)\.(.+)")


def kohya_name(path: str) -> str:
    """Of a module's path in a U-Net, of either kind."""
    return UNET + path.replace(".", "_")


def stability_path(path: str, layers_per_block: int, attending: Collection[int]) -> str | None:
    """Where a module of diffusers' U-Net lies in Stability's; None of what has no block there.

    Args:
        path: of the module, as `mid_block.attentions.0.proj_in`.
        layers_per_block: the U-Net's.
        attending: the indices of its up blocks that have attention.
    """
    found = BLOCK.fullmatch(path)
    if found is None:
        return None
    side, block, kind, index, rest = found.groups()
    inside = RESNET.get(rest, rest) if kind == "resnets" else rest
    if side is None:
        return f"middle_block.{MIDDLE[f'{kind}.{index}']}.{inside}"
    first = int(block) * (layers_per_block + 1)
    if side == "down":
        if kind == "downsamplers":
            return f"input_blocks.{1 + first + layers_per_block}.0.op"
        return f"input_blocks.{1 + first + int(index)}.{INNER[kind]}.{inside}"
    if kind == "upsamplers":
        return f"output_blocks.{first + layers_per_block}.{2 if int(block) in attending else 1}.{inside}"
    return f"output_blocks.{first + int(index)}.{INNER[kind]}.{inside}"


def names_of(paths: Collection[str], layers_per_block: int) -> Mapping[str, tuple[str, str | None]]:
    """The name of each module by its path, as of SD-1.5's U-Net and as of SDXL's; None where it has none of these."""
    attending = {int(path.split(".")[1]) for path in paths if re.match(r"up_blocks\.\d+\.attentions\.", path)}
    stability = {path: stability_path(path, layers_per_block, attending) for path in paths}
    return {path: (kohya_name(path), None if own is None else kohya_name(own)) for path, own in stability.items()}
