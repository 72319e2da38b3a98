"""diffusers' UNet2DConditionModel as a backbone, for the tiny U-Net and for published ones.

Shapes: B batch, R rows of it, C channels, H/W latent, h/w a block's map, L condition tokens, E condition width,
T time embedding.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from urepa.core.abstract import Abstract
from urepa.core.conditions import CLASS, Condition
from urepa.core.types import Denoised, Tokens
from urepa.models.backbones.backbone_sizes import LORA, TRAINED_ROWS, check_unet, check_unet_tap
from urepa.models.lora.kohya_net import is_kohya_lora, load_kohya_lora
from urepa.models.lora.lora_net import load_pipeline_lora, write_pipeline_lora
from urepa.models.weight_files import read_safetensors, save_tensors

ENCODER = (
    *("embedding_KLE", "null_D", "null_P", "unet.encoder_hid_proj.", "unet.class_embedding."),
    *("unet.add_embedding.", "unet.conv_in.", "unet.time_embedding.", "unet.down_blocks."),
)
BEFORE = {
    "enc_last": ENCODER,
    "mid": (*ENCODER, "unet.mid_block."),
    "dec_first": (*ENCODER, "unet.mid_block.", "unet.up_blocks.0."),
}

# Module names for LoRA, anchored at the top: a bare "to_q" would reach every block and put gradients into the frozen
# encoder.
LORA_BLOCKS = {"mid": r"mid_block\.", "all": r"(?:down_blocks|mid_block|up_blocks)\."}
LORA_TARGETS = {
    "attention": r".*\.(?:to_q|to_k|to_v|to_out\.0)",
    "attention_conv": r"(?:.*\.(?:to_q|to_k|to_v|to_out\.0)|(?:\d+\.)?resnets\.\d+\.conv[12])",
}
DECODER = ("unet.up_blocks.", "unet.conv_norm_out", "unet.conv_act", "unet.conv_out")
MASKED = -10000.0  # diffusers' score of a masked token, whose weight is then 0 exactly


@dataclass(frozen=True)
class StageState:
    """What one stage of the U-Net passes to the next."""

    map_BChw: Tensor
    skips: tuple[Tensor, ...]  # [B,c,h,w] each, the last one is used first
    temb_BT: Tensor
    text_BLE: Tensor
    bias_B1L: Tensor | None = None  # added to the scores of attention to the text, if tokens can be masked

    def rows(self, rows_R: Tensor) -> "StageState":
        """The state of some of the samples."""
        skips = tuple(skip[rows_R] for skip in self.skips)
        bias_R1L = None if self.bias_B1L is None else self.bias_B1L[rows_R]
        return StageState(self.map_BChw[rows_R], skips, self.temb_BT[rows_R], self.text_BLE[rows_R], bias_R1L)


class StagedUNet(nn.Module, Abstract):
    """A U-Net that runs diffusers' modules in stages.

    Taps: `mid` (the middle block's output), `enc_last` (the last down block's), `dec_first` (the first up
    block's, after its upsampling).
    """

    stages = ("down", "mid", "up")
    regions = ("ResnetBlock2D", "BasicTransformerBlock")
    adapter_files = "StableDiffusionLoraLoaderMixin"  # the class of diffusers.loaders for its LoRA files

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet: Any = unet

    @abstractmethod
    def attended(self, condition: Condition) -> tuple[Tensor, Tensor | None]:
        """The input of cross-attention: tokens [B,L,E], and a bias [B,1,L] that is added to the scores, if some are
        masked."""

    def added_to_time(self, condition: Condition, x_t: Tensor, temb_BT: Tensor) -> Tensor | None:
        """What is added to the time embedding [B,T], computed from the condition and x_t's size; None: nothing."""
        return None

    def project_text(self, tokens_BLD: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [B,L,E] projected for cross-attention, and the bias [B,1,L] that is added to the scores."""
        project = self.unet.encoder_hid_proj
        text_BLE = tokens_BLD if project is None else project(tokens_BLD)
        return text_BLE, torch.where(mask_BL, 0.0, MASKED).unsqueeze(1)

    def own_tensors(self) -> dict[str, Tensor]:
        """The trained tensors outside diffusers' modules, by their names in an export."""
        return {}

    def tap_width(self, tap: str) -> int:
        """D of a tap's tokens. Raises UserError for a tap that does not exist."""
        check_unet_tap(tap)
        return int(self.unet.config.block_out_channels[-1])

    def trains_before(self, tap: str) -> bool:
        """Whether something trainable precedes the tap. If not, the alignment term there trains only the head."""
        return any(p.requires_grad for name, p in self.named_parameters() if name.startswith(BEFORE[tap]))

    def freeze_after(self, taps: tuple[str, ...]) -> None:
        """Freezes the parameters that no tap depends on: without a diffusion term they would have no gradient."""
        before = tuple(prefix for tap in taps for prefix in BEFORE[tap])
        for name, parameter in self.named_parameters():
            if not name.startswith(before):
                parameter.requires_grad_(False)

    def lora_modules(self, targets: str, blocks: str) -> str:
        """A regular expression for the names of the modules to adapt."""
        return LORA_BLOCKS[blocks] + LORA_TARGETS[targets]

    def add_adapter(self, config: Any) -> None:
        """Adds peft's adapters through diffusers, so that its loaders recognise them."""
        self.unet.add_adapter(config)

    def load_adapters(self, file: Path) -> None:
        """Adds the adapters in a LoRA file, in kohya-ss's layout or for diffusers' pipelines."""
        if is_kohya_lora(file):
            load_kohya_lora(self.unet, file)
        else:
            load_pipeline_lora(self.unet, file, self.adapter_files)

    def read_values(self, files: Sequence[Path]) -> dict[str, Tensor]:
        """The values of a small U-Net's parameters in an export's files, by name: its weights and its condition
        embeddings."""
        found: dict[str, Tensor] = {}
        for file in files:
            if file.suffix == ".safetensors":
                prefix = "" if file.name == TRAINED_ROWS else "unet."
                found |= {prefix + name: value for name, value in read_safetensors(file).items()}
        return found

    def export(self, folder: Path) -> None:
        """Writes diffusers' layout: only the adapters, for its pipelines, or the whole U-Net and its trained condition
        embeddings, if it has any."""
        if getattr(self.unet, "peft_config", None):
            write_pipeline_lora(self.unet, folder / LORA, self.adapter_files)
            return
        self.unet.save_pretrained(folder / "unet", safe_serialization=True)
        if own := self.own_tensors():
            save_tensors(own, folder / TRAINED_ROWS)

    def stage_of(self, name: str) -> str:
        """The part of the U-Net that has a module or parameter of this name: one of `stages`."""
        if name.startswith("unet.mid_block"):
            return "mid"
        return "up" if name.startswith(DECODER) else "down"

    def forward(
        self,
        x_t: Tensor,
        t_B: Tensor,
        condition: Condition,
        taps: tuple[str, ...] = (),
        rows_R: Tensor | None = None,
    ) -> Denoised:
        """x_t [B,C,H,W], integer t [B]. The prediction equals diffusers' own bit for bit.

        rows_R [R] are the indices of the samples to predict (None: all). The decoder processes only these, and if
        there are none the forward stops after the deepest tap. Taps always have the whole batch.
        """
        for tap in taps:
            self.tap_width(tap)
        features: dict[str, Tokens] = {}

        def hand_out(tap: str, map_BChw: Tensor) -> Tensor:
            """Stores a map as a tap's tokens and returns the same tokens as a map (views, no copy), so that the tokens
            are part of the diffusion loss's graph too and its gradient at the tap can be computed."""
            if tap not in taps:
                return map_BChw
            features[tap] = Tokens.from_map(map_BChw)
            return features[tap].to_map()

        stops = rows_R is not None and len(rows_R) == 0
        stage = self._encoder(x_t, t_B, condition)
        map_BChw = hand_out("enc_last", stage.map_BChw)
        skips = tuple(map_BChw if skip is stage.map_BChw else skip for skip in stage.skips)
        stage = replace(stage, map_BChw=map_BChw, skips=skips)
        if not (stops and set(taps) <= {"enc_last"}):
            stage = replace(stage, map_BChw=hand_out("mid", self._middle(stage)))
        sizes = self._upsample_sizes(x_t, stage.skips)
        first = 0
        if "dec_first" in taps:
            stage = self._up(stage, 0, sizes)
            stage = replace(stage, map_BChw=hand_out("dec_first", stage.map_BChw))
            first = 1
        if stops:
            return Denoised(x_t[:0], features)
        if rows_R is not None:
            stage = stage.rows(rows_R)
        for index in range(first, len(self.unet.up_blocks)):
            stage = self._up(stage, index, sizes)
        return Denoised(self._out(stage.map_BChw), features)

    # --- diffusers' forward, split at the taps -----------------------------------------------------

    def _encoder(self, x_t: Tensor, t_B: Tensor, condition: Condition) -> StageState:
        """Time embedding, first convolution and down blocks; without a graph if nothing in them trains."""
        unet, (text_BLE, bias_B1L) = self.unet, self.attended(condition)
        trains = any(p.requires_grad for n, p in self.named_parameters() if n.startswith(ENCODER)) or x_t.requires_grad
        with torch.set_grad_enabled(trains and torch.is_grad_enabled()):
            temb_BT = unet.time_embedding(unet.get_time_embed(sample=x_t, timestep=t_B))
            added_BT = self.added_to_time(condition, x_t, temb_BT)
            if added_BT is not None:
                temb_BT = temb_BT + added_BT
            if unet.time_embed_act is not None:
                temb_BT = unet.time_embed_act(temb_BT)
            hidden = unet.conv_in(x_t)
            skips: tuple[Tensor, ...] = (hidden,)
            for block in unet.down_blocks:
                hidden, more = block(hidden_states=hidden, temb=temb_BT, **_text(block, text_BLE, bias_B1L))
                skips += tuple(more)
        return StageState(hidden, skips, temb_BT, text_BLE, bias_B1L)

    def _middle(self, stage: StageState) -> Tensor:
        block = self.unet.mid_block
        return block(stage.map_BChw, stage.temb_BT, **_text(block, stage.text_BLE, stage.bias_B1L))

    def _up(self, stage: StageState, index: int, sizes: list[Any]) -> StageState:
        block = self.unet.up_blocks[index]
        used = len(block.resnets)
        hidden = block(
            hidden_states=stage.map_BChw,
            temb=stage.temb_BT,
            res_hidden_states_tuple=stage.skips[-used:],
            upsample_size=sizes[index],
            **_text(block, stage.text_BLE, stage.bias_B1L),
        )
        return replace(stage, map_BChw=hidden, skips=stage.skips[:-used])

    def _out(self, map_BChw: Tensor) -> Tensor:
        unet = self.unet
        if unet.conv_norm_out:
            map_BChw = unet.conv_act(unet.conv_norm_out(map_BChw))
        return unet.conv_out(map_BChw)

    def _upsample_sizes(self, x_t: Tensor, skips: tuple[Tensor, ...]) -> list[Any]:
        """The output size of each up block, if the latent does not halve evenly; else None, as in diffusers."""
        unet = self.unet
        if all(side % 2**unet.num_upsamplers == 0 for side in x_t.shape[-2:]):
            return [None] * len(unet.up_blocks)
        sizes: list[Any] = []
        for block in unet.up_blocks:
            skips = skips[: -len(block.resnets)]
            sizes.append(skips[-1].shape[2:] if skips else None)
        return sizes


def _text(block: Any, text_BLE: Tensor, bias_B1L: Tensor | None) -> dict[str, Tensor]:
    """The text arguments of a block; none for blocks without cross-attention."""
    if not getattr(block, "has_cross_attention", False):
        return {}
    masked = {} if bias_B1L is None else {"encoder_attention_mask": bias_B1L}
    return {"encoder_hidden_states": text_BLE} | masked


class UNet(StagedUNet):
    """A U-Net with a condition embedding [ids, L, E], a trainable parameter or a frozen buffer, whose last row is the
    null condition."""

    def __init__(self, unet: Any, embedding_KLE: Tensor) -> None:
        super().__init__(unet)
        if isinstance(embedding_KLE, nn.Parameter):
            self.embedding_KLE = embedding_KLE
        else:
            self.register_buffer("embedding_KLE", embedding_KLE, persistent=False)

    def own_tensors(self) -> dict[str, Tensor]:
        # a buffer holds embeddings of a frozen text encoder, which are not trained
        return {"embedding_KLE": self.embedding_KLE} if isinstance(self.embedding_KLE, nn.Parameter) else {}

    def attended(self, condition: Condition) -> tuple[Tensor, Tensor | None]:
        return self.text_of(condition), None

    def text_of(self, condition: Condition) -> Tensor:
        """The rows [B,L,E] of the samples' classes, or the last row if the class is withheld."""
        classes = condition[CLASS]
        return self.embedding_KLE[classes.where_given(classes.ids_B, len(self.embedding_KLE) - 1)]


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

    Raises UserError if the latent's size or the widths do not fit.
    """
    unet = diffusers_unet(
        block_out_channels, attention, layers_per_block, cross_attention_dim, head_dim, latent_shape=latent_shape
    )
    embedding = nn.Parameter(torch.randn(num_classes + 1, 1, cross_attention_dim))
    return UNet(unet, embedding)


def diffusers_unet(
    block_out_channels: list[int],
    attention: list[bool],
    layers_per_block: int,
    cross_attention_dim: int,
    head_dim: int,
    *,
    latent_shape: tuple[int, int, int],
    **of_text: Any,
) -> Any:
    """UNet2DConditionModel with random weights. Raises UserError if the latent's size or the widths do not fit.

    Args:
        of_text: settings of UNet2DConditionModel for a text condition.
    """
    from diffusers import UNet2DConditionModel

    channels, height, width = latent_shape
    check_unet(block_out_channels, attention, latent_shape)
    return UNet2DConditionModel(
        sample_size=(height, width),
        in_channels=channels,
        out_channels=channels,
        down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attention),
        up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
        block_out_channels=tuple(block_out_channels),
        layers_per_block=layers_per_block,
        cross_attention_dim=cross_attention_dim,
        # in diffusers attention_head_dim is the number of heads per resolution
        attention_head_dim=tuple(c // head_dim for c in block_out_channels),
        **of_text,
    )
