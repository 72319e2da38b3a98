"""diffusers' transformers as backbones: its own module, with hooks at its blocks.

A family is a subclass: the names of its block lists, the arguments that its module is called with, where the image
tokens are in what a block returns, and how its output becomes a prediction.

Shapes: B batch, R rows of it, C channels, H/W latent, p patch, h/w grid of image tokens, N = h·w of them, D width.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from urepa.core.conditions import Condition
from urepa.core.types import Denoised, Tokens
from urepa.models.backbones.backbone_sizes import check_transformer_adapters, transformer_block
from urepa.models.lora.transformer_lora_net import load_transformer_lora, write_transformer_lora

PREFIX = "transformer."  # of parameters' names


class Stopped(Exception):
    """Ends a pass of which no more is asked for."""


@dataclass
class Pass:
    """One pass: what it was called with, and what its hooks hand out."""

    condition: Condition
    grid: tuple[int, int]
    tap_of: Mapping[int, str]  # by the index of a block
    stop: int | None  # the block before which the pass ends; None: none does
    features: dict[str, Tokens] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """N."""
        return self.grid[0] * self.grid[1]


class DiffusersTransformer(nn.Module):
    """A transformer of diffusers. Taps: `block_k`, the image tokens after block k, counted from 0 over its block lists
    one after the other.

    Hooks lie at every block from the start: a compiled block has those that it had when it was compiled. Outside of a
    pass of this module, as when a block is computed again for the backward pass, they do nothing.
    """

    stages = ("embedding", "blocks", "output")
    regions: ClassVar[tuple[str, ...]]  # names of the blocks' classes
    lists: ClassVar[tuple[str, ...]] = ("transformer_blocks",)  # the module's lists of blocks, in the order of the pass
    # what comes after the last block: the beginnings of parameters' names
    output_layers: ClassVar[tuple[str, ...]] = ("norm_out", "proj_out", "scale_shift_table")
    # parameters of a block that its own image tokens do not depend on: text alone passes them
    text_alone: ClassVar[str] = r"(?!)"
    adapted: ClassVar[str] = r"to_q|to_k|to_v|to_out\.0"  # layers of attention that have adapters
    adapter_files: ClassVar[str | None]  # the pipeline's base in diffusers.loaders; None: it loads no adapters itself

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        self.transformer: Any = transformer
        self._pass: Pass | None = None
        for index, block in enumerate(self.blocks):
            block.register_forward_pre_hook(partial(self._before, index))
            block.register_forward_hook(partial(self._after, index))

    # --- what a family says --------------------------------------------------------------------------------------

    @staticmethod
    def widths_of(config: Any) -> dict[str, int]:
        """The widths of the parts of a condition, by name, that a module of this config takes."""
        raise NotImplementedError

    @staticmethod
    def channels_of(config: Any) -> int:
        """C of the latents that a module of this config takes."""
        return int(config.in_channels)

    def arguments(self, x_t: Tensor, t_B: Tensor, condition: Condition) -> dict[str, Any]:
        """What the module is called with, for x_t [B,C,H,W] and the objective's times [B]."""
        raise NotImplementedError

    def image_tokens(self, index: int, output: Any, current: Pass) -> Tensor:
        """The image tokens [B,N,D] in what block `index` returned."""
        raise NotImplementedError

    def with_tokens(self, index: int, output: Any, tokens_BND: Tensor, current: Pass) -> Any:
        """What block `index` is to hand on, with these image tokens, which are a view of `output`'s. Overridden where
        they are not themselves in it: they must lie on the path to the prediction, for gradients at the tap."""
        return output

    def prediction(self, out: Tensor, x_t: Tensor) -> Tensor:
        """The prediction [B,C,H,W] of the module's output."""
        return out

    def grid_of(self, x_t: Tensor) -> tuple[int, int]:
        """h, w."""
        patch = self.transformer.config.patch_size
        return x_t.shape[2] // patch, x_t.shape[3] // patch

    # --- the backbone ----------------------------------------------------------------------------------------------

    @property
    def blocks(self) -> list[nn.Module]:
        """All blocks, in the order of the pass."""
        return [block for name in self.lists for block in getattr(self.transformer, name)]

    def index_of(self, tap: str) -> int:
        """The block of a tap. A tap that does not exist is a UserError."""
        return transformer_block(tap, len(self.blocks))

    def tap_width(self, tap: str) -> int:
        """D, for every tap that there is."""
        self.index_of(tap)
        return int(self.transformer.inner_dim if hasattr(self.transformer, "inner_dim") else self.width)

    @property
    def width(self) -> int:
        """D, of a module that does not say it."""
        config = self.transformer.config
        return int(config.num_attention_heads * config.attention_head_dim)

    def place_of(self, name: str) -> int:
        """The block that a parameter or module of this name is in; -1 before the first one, their number after the
        last one."""
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
        """Do the image tokens after block `index` depend on a parameter of this name?"""
        place = self.place_of(name)
        return place < index or (place == index and re.search(self.text_alone, name) is None)

    def trains_before(self, tap: str) -> bool:
        """Does something trainable precede the tap? If not, its alignment term reaches the head alone."""
        index = self.index_of(tap)
        return any(p.requires_grad and self._reaches(name, index) for name, p in self.named_parameters())

    def freeze_after(self, taps: tuple[str, ...]) -> None:
        """Freezes what no tap depends on: without a diffusion term it would have no gradient."""
        deepest = max(self.index_of(tap) for tap in taps)
        for name, parameter in self.named_parameters():
            if not self._reaches(name, deepest):
                parameter.requires_grad_(False)

    def stage_of(self, name: str) -> str:
        """Where a module or parameter of this name works: one of `stages`."""
        place = self.place_of(name)
        return "embedding" if place < 0 else "output" if place == len(self.blocks) else "blocks"

    def lora_modules(self, targets: str, blocks: str) -> str:
        """A regular expression for the names of the modules to adapt; UserError for what a U-Net alone has."""
        check_transformer_adapters(targets, blocks)
        return rf"(?:{'|'.join(self.lists)})\.\d+\.(?:.+\.)?(?:{self.adapted})"

    def add_adapter(self, config: Any) -> None:
        """peft's adapters, as diffusers' own loaders know them where its pipeline has some."""
        if self.adapter_files is not None:
            self.transformer.add_adapter(config)
            return
        from peft import inject_adapter_in_model

        inject_adapter_in_model(config, self.transformer)

    def load_adapters(self, file: Path) -> None:
        """A LoRA file for the family's pipeline, or of peft where that loads none, on top of its weights."""
        load_transformer_lora(self.transformer, file, self.adapter_files)

    def export(self, folder: Path) -> None:
        """In diffusers' layout: adapters alone, or the whole transformer."""
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
        """x_t [B,C,H,W], the objective's times [B].

        rows_R [R] are the samples whose prediction is asked for (None: all). With none at all the pass stops after the
        deepest tap; else it is that of the whole batch. Taps always hold the whole batch.
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
        """Ends the pass where nothing of the block is asked for. (Before the next block and not after the tapped one:
        that one may be inside of a checkpoint, which is to end.)"""
        if self._pass is not None and index == self._pass.stop:
            raise Stopped

    @torch.compiler.disable
    def _after(self, index: int, block: nn.Module, inputs: Any, output: Any) -> Any:
        """Hands the tapped tokens out, and passes the same ones on."""
        current = self._pass
        if current is None or index not in current.tap_of:
            return output
        tokens_BND = self.image_tokens(index, output, current)
        current.features[current.tap_of[index]] = Tokens(tokens_BND, current.grid)
        return self.with_tokens(index, output, tokens_BND, current)
