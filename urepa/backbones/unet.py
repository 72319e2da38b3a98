"""diffusers' UNet2DConditionModel as a backbone: the tiny one and SD-1.5 are the same class.

Shapes: B batch, C channels, H/W latent, L condition tokens, E condition width.
"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from urepa.contracts import Condition, Denoised, Tokens
from urepa.errors import UserError

TAPS = ("mid", "enc_last", "dec_first")
ENCODER = ("embedding_KLE", "unet.conv_in.", "unet.time_embedding.", "unet.down_blocks.")
BEFORE = {
    "enc_last": ENCODER,
    "mid": (*ENCODER, "unet.mid_block."),
    "dec_first": (*ENCODER, "unet.mid_block.", "unet.up_blocks.0."),
}


class UNet(nn.Module):
    """A U-Net and its condition embedding [ids, L, E]: a trainable parameter or a frozen buffer.

    Taps: `mid` (the middle block's output), `enc_last` (the last down block's), `dec_first` (the first up
    block's, after its upsampling).
    """

    def __init__(self, unet: Any, embedding_KLE: Tensor) -> None:
        super().__init__()
        self.unet: Any = unet
        if isinstance(embedding_KLE, nn.Parameter):
            self.embedding_KLE = embedding_KLE
        else:
            self.register_buffer("embedding_KLE", embedding_KLE, persistent=False)

    def tap_width(self, tap: str) -> int:
        """D of a tap's tokens. A tap that does not exist is a UserError."""
        if tap not in TAPS:
            raise UserError(f"this backbone has no tap '{tap}'; it has {', '.join(TAPS)}")
        return int(self.unet.config.block_out_channels[-1])

    def tap_module(self, tap: str) -> nn.Module:
        """The block whose output the tap is."""
        self.tap_width(tap)
        unet = self.unet
        return {"mid": unet.mid_block, "enc_last": unet.down_blocks[-1], "dec_first": unet.up_blocks[0]}[tap]

    def trains_before(self, tap: str) -> bool:
        """Does something trainable precede the tap? If not, its alignment term reaches the head alone."""
        trains = [name for name, p in self.named_parameters() if p.requires_grad]
        return any(name.startswith(BEFORE[tap]) for name in trains)

    def forward(self, x_t: Tensor, t_B: Tensor, condition: Condition, taps: tuple[str, ...] = ()) -> Denoised:
        """x_t [B,C,H,W], integer t [B]. Bit for bit diffusers' own prediction."""
        features: dict[str, Tokens] = {}
        with contextlib.ExitStack() as hooks:
            for tap in taps:
                handle = self.tap_module(tap).register_forward_hook(partial(_hand_out, features, tap))
                hooks.callback(handle.remove)
            text_BLE = self.embedding_KLE[condition.ids_B]
            prediction = self.unet(x_t, t_B, encoder_hidden_states=text_BLE).sample
        return Denoised(prediction, features)


def _hand_out(features: dict[str, Tokens], tap: str, module: nn.Module, inputs: Any, output: Any) -> Any:
    """Hands the block's map out as tokens and passes the same tokens on (views both ways, no copy), so that
    the tokens lie on the path of the diffusion loss too and its gradient at the tap can be asked for."""
    hidden = output[0] if isinstance(output, tuple) else output
    tokens = features[tap] = Tokens.from_map(hidden)
    passed_on = tokens.to_map()
    if not isinstance(output, tuple):
        return passed_on
    skips = tuple(passed_on if skip is hidden else skip for skip in output[1])
    return (passed_on, skips, *output[2:])


def tiny_unet(
    block_out_channels: list[int],
    attention: list[bool],
    layers_per_block: int,
    cross_attention_dim: int,
    head_dim: int,
    *,
    latent_shape: tuple[int, int, int],
    num_classes: int,
) -> UNet:
    """A class-conditional U-Net with random weights; the last row of its embedding is the null condition.

    Raises UserError where the latent's size or the widths do not fit.
    """
    from diffusers import UNet2DConditionModel

    channels, height, width = latent_shape
    levels = len(block_out_channels)
    if len(attention) != levels:
        raise UserError(
            f"backbone.attention has {len(attention)} entries and backbone.block_out_channels {levels}; "
            "give one of each per resolution"
        )
    factor = 2 ** (levels - 1)
    if height % factor or width % factor:
        raise UserError(
            f"backbone: {levels} resolutions halve the latent {levels - 1} times, but {height}x{width} is not "
            f"a multiple of {factor}; give fewer backbone.block_out_channels or another data.image_size"
        )
    if any(c % 32 for c in block_out_channels):
        raise UserError(f"backbone.block_out_channels={list(block_out_channels)}: each must be a multiple of 32")
    unet = UNet2DConditionModel(
        sample_size=(height, width),
        in_channels=channels,
        out_channels=channels,
        down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attention),
        up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
        block_out_channels=tuple(block_out_channels),
        layers_per_block=layers_per_block,
        cross_attention_dim=cross_attention_dim,
        # diffusers calls it attention_head_dim and means the number of heads, per resolution
        attention_head_dim=tuple(c // head_dim for c in block_out_channels),
    )
    embedding = nn.Parameter(torch.randn(num_classes + 1, 1, cross_attention_dim))
    return UNet(unet, embedding)
