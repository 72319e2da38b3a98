"""diffusers' transformers as backbones: diffusers' own module with hooks at its blocks.

A family is a subclass. It defines the names of the module's block lists, the arguments of the module, where the image
tokens are in a block's output, and how the module's output becomes a prediction.

Shapes: B batch, R rows of it, C channels, H/W latent, p patch, h/w grid of image tokens, N = h·w of them, D width.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from urepa.core.abstract import Abstract
from urepa.core.conditions import Condition
from urepa.core.types import Denoised, Tokens
from urepa.models.backbones.backbone_sizes import check_transformer_adapters, transformer_block
from urepa.models.lora.transformer_lora_net import load_transformer_lora, write_transformer_lora

PREFIX = "transformer."  # of parameters' names


class Stopped(Exception):
    """Ends a pass whose remaining blocks are not needed."""


@dataclass
class Pass:
    """The inputs of one pass, and the features that its hooks collect."""

    condition: Condition
    grid: tuple[int, int]
    tap_of: Mapping[int, str]  # the name of a tap by the index of its block
    stop: int | None  # the block before which the pass ends; None: the pass does not end early
    features: dict[str, Tokens] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """N."""
        return self.grid[0] * self.grid[1]


class DiffusersTransformer(nn.Module, Abstract):
    """A transformer of diffusers. Taps: `block_k`, the image tokens after block k, counted from 0 over its block lists
    one after the other.

    All blocks get their hooks at the start, because a compiled block keeps the hooks that it had when it was compiled.
    Outside a pass of this module the hooks do nothing, for example when a block is computed again in the backward pass.
    """

    stages = ("embedding", "blocks", "output")
    regions: ClassVar[tuple[str, ...]]  # names of the blocks' classes
    lists: ClassVar[tuple[str, ...]] = ("transformer_blocks",)  # the module's block lists, in the order of the pass
    # prefixes of the names of parameters after the last block
    output_layers: ClassVar[tuple[str, ...]] = ("norm_out", "proj_out", "scale_shift_table")
    # pattern of the parameters of a block through which only text passes: its own image tokens do not depend on them
    text_alone: ClassVar[str] = r"(?!)"
    adapted: ClassVar[str] = r"to_q|to_k|to_v|to_out\.0"  # layers of attention that get adapters
    adapter_files: ClassVar[str | None]  # the pipeline's base class in diffusers.loaders; None: it loads no adapters

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        self.transformer: Any = transformer
        self._pass: Pass | None = None
        for index, block in enumerate(self.blocks):
            block.register_forward_pre_hook(partial(self._before, index))
            block.register_forward_hook(partial(self._after, index))

    # --- defined by a family ---------------------------------------------------------------------------------------

    @staticmethod
    def channels_of(config: Any) -> int:
        """C, the latent channels of a module with this config."""
        return int(config.in_channels)

    @abstractmethod
    def arguments(self, x_t: Tensor, t_B: Tensor, condition: Condition) -> dict[str, Any]:
        """The arguments of the module for x_t [B,C,H,W] and the objective's times [B]."""

    @abstractmethod
    def image_tokens(self, index: int, output: Any, current: Pass) -> Tensor:
        """The image tokens [B,N,D] in the output of block `index`."""

    def with_tokens(self, index: int, output: Any, tokens_BND: Tensor, current: Pass) -> Any:
        """The output of block `index` with these image tokens, a view of `output`'s. A family overrides this if
        `output` does not contain the tensor itself: the prediction must depend on it, for gradients at the tap."""
        return output

    def prediction(self, out: Tensor, x_t: Tensor) -> Tensor:
        """The prediction [B,C,H,W], computed from the module's output."""
        return out

    def grid_of(self, x_t: Tensor) -> tuple[int, int]:
        """The grid h, w of image tokens."""
        patch = self.transformer.config.patch_size
        return x_t.shape[2] // patch, x_t.shape[3] // patch

    # --- the backbone ----------------------------------------------------------------------------------------------

    @property
    def blocks(self) -> list[nn.Module]:
        """All blocks, in the order of the pass."""
        return [block for name in self.lists for block in getattr(self.transformer, name)]

    def index_of(self, tap: str) -> int:
        """The index of a tap's block. Raises UserError for a tap that does not exist."""
        return transformer_block(tap, len(self.blocks))

    def tap_width(self, tap: str) -> int:
        """D, the same for every tap. Raises UserError for a tap that does not exist."""
        self.index_of(tap)
        return int(self.transformer.inner_dim if hasattr(self.transformer, "inner_dim") else self.width)

    @property
    def width(self) -> int:
        """D, for modules without the attribute `inner_dim`."""
        config = self.transformer.config
        return int(config.num_attention_heads * config.attention_head_dim)

    def place_of(self, name: str) -> int:
        """The index of the block that contains a parameter or module of this name; -1 before the first block, the
        number of blocks after the last one."""
        own = name.removeprefix(PREFIX)
        if own.startswith(self.output_layers):
            return len(self.blocks)
        first = 0
        for blocks in self.lists:
            if own.startswith(f"{blocks}."):
                return first + int(own.split(".")[1])
            first += len(getattr(self.transformer, blocks))
        return -1

    def _reaches(self, name: str, index: int) -> bool:
        """Whether the image tokens after block `index` depend on a parameter of this name."""
        place = self.place_of(name)
        return place < index or (place == index and re.search(self.text_alone, name) is None)

    def trains_before(self, tap: str) -> bool:
        """Whether something trainable precedes the tap. If not, the alignment term there trains only the head."""
        index = self.index_of(tap)
        return any(p.requires_grad and self._reaches(name, index) for name, p in self.named_parameters())

    def freeze_after(self, taps: tuple[str, ...]) -> None:
        """Freezes the parameters that no tap depends on: without a diffusion term they would have no gradient."""
        deepest = max(self.index_of(tap) for tap in taps)
        for name, parameter in self.named_parameters():
            if not self._reaches(name, deepest):
                parameter.requires_grad_(False)

    def stage_of(self, name: str) -> str:
        """The part of the network that has a module or parameter of this name: one of `stages`."""
        place = self.place_of(name)
        return "embedding" if place < 0 else "output" if place == len(self.blocks) else "blocks"

    def lora_modules(self, targets: str, blocks: str) -> str:
        """A regular expression for the names of the modules to adapt. Raises UserError for targets or blocks that only
        a U-Net has."""
        check_transformer_adapters(targets, blocks)
        return rf"(?:{'|'.join(self.lists)})\.\d+\.(?:.+\.)?(?:{self.adapted})"

    def add_adapter(self, config: Any) -> None:
        """Adds peft's adapters, in the form that diffusers' loaders expect if the pipeline has such a loader."""
        if self.adapter_files is not None:
            self.transformer.add_adapter(config)
            return
        from peft import inject_adapter_in_model

        inject_adapter_in_model(config, self.transformer)

    def load_adapters(self, file: Path) -> None:
        """Loads a LoRA file in the layout of the family's pipeline, or of peft if the pipeline loads no LoRA."""
        load_transformer_lora(self.transformer, file, self.adapter_files)

    def export(self, folder: Path) -> None:
        """Writes the adapters, or without adapters the whole transformer, in diffusers' layout."""
        if getattr(self.transformer, "peft_config", None):
            write_transformer_lora(self.transformer, folder, self.adapter_files)
        else:
            self.transformer.save_pretrained(folder / "transformer", safe_serialization=True)

    def forward(
        self,
        x_t: Tensor,
        t_B: Tensor,
        condition: Condition,
        taps: tuple[str, ...] = (),
        rows_R: Tensor | None = None,
    ) -> Denoised:
        """Predicts from x_t [B,C,H,W] at the objective's times [B].

        rows_R [R] are the indices of the samples to predict (None: all). If it is empty, the pass ends after the
        deepest tap; otherwise all blocks process the whole batch. Taps always have the whole batch.
        """
        tap_of = {self.index_of(tap): tap for tap in taps}
        stops = rows_R is not None and len(rows_R) == 0
        current = Pass(condition, self.grid_of(x_t), tap_of, max(tap_of, default=-1) + 1 if stops else None)
        arguments = self.arguments(x_t, t_B, condition)
        self._pass = current
        try:
            (out, *_) = self.transformer(**arguments, return_dict=False)
        except Stopped:
            return Denoised(x_t[:0], current.features)
        finally:
            self._pass = None
        prediction = self.prediction(out, x_t)
        return Denoised(prediction if rows_R is None else prediction[rows_R], current.features)

    @torch.compiler.disable
    def _before(self, index: int, block: nn.Module, inputs: Any) -> None:
        """Ends the pass if this block is not needed. The pass ends before the next block, not after the tapped one,
        because a checkpoint around the tapped block must end first."""
        if self._pass is not None and index == self._pass.stop:
            raise Stopped

    @torch.compiler.disable
    def _after(self, index: int, block: nn.Module, inputs: Any, output: Any) -> Any:
        """Stores the tapped tokens and returns the block's output with the same tensor."""
        current = self._pass
        if current is None or index not in current.tap_of:
            return output
        tokens_BND = self.image_tokens(index, output, current)
        current.features[current.tap_of[index]] = Tokens(tokens_BND, current.grid)
        return self.with_tokens(index, output, tokens_BND, current)
