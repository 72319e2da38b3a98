"""FlexTok: a tokenizer with ordered tokens, and the flow that decodes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from urepa.core.backbone_protocols import FoundWeights, WeightsKind
from urepa.core.comparability import DIFFUSION, TOTAL, X0_ERROR
from urepa.core.declared_keys import SIZE, setting
from urepa.core.descriptions import BackboneFacts, CardFacts, Formula, code_block, number
from urepa.core.errors import UserError
from urepa.core.part_names import IMAGE, KEEP
from urepa.models.backbones.backbone_sizes import EXPORTED, RANDOM
from urepa.models.backbones.flextok_sizes import NO_ADAPTERS, check_levels, check_patches, check_width, decoder_block

if TYPE_CHECKING:
    from urepa.models.backbones.flextok_net import FlexTokNetwork

DROPOUTS = {
    "uniform": "In training and validation a sample keeps its first k registers, k uniform from 1 to {registers}",
    "powers_of_two": (
        "In training and validation a sample keeps its first k registers, k uniform from 1 to {registers} and rounded "
        "up to a power of two"
    ),
    "none": "All registers are kept in training and validation",
}
FINE_TUNING = 1e-5  # the largest learning rate that is refused with random weights; the description's is 1e-6
USE = """\
python -m urepa.train {command} backbone.weights=FOLDER/model.safetensors  # a run that begins with these weights
"""


class NestedDropout(Enum):
    uniform = "uniform"
    powers_of_two = "powers_of_two"
    none = "none"


@dataclass
class FlexTok:
    """An encoder of x0 to ordered, quantised registers, and a transformer that denoises patches joined with them
    (Bachmann et al. 2025, arXiv 2502.13967)."""

    _target_: str = "urepa.models.backbones.flextok.FlexTok"
    weights: str = setting(
        '"random", a local file or folder of an export, or a local file in the layout of apple/ml-flextok'
    )
    patch: int = setting("side of a patch, in latent pixels", ge=1, le=SIZE)
    registers: int = setting("registers of an image, which become its codes", ge=1, le=SIZE)
    levels: list[int] = setting(
        "levels of each value of a code; their product is the number of different codes", ge=2, le=SIZE
    )
    nested_dropout: NestedDropout = setting(
        "how many of a sample's first registers are kept, in training and validation: a uniform number, this rounded "
        "up to a power of two, or all",
        alters=(DIFFUSION, X0_ERROR, TOTAL),
    )
    encoder_depth: int = setting("number of the encoder's blocks", ge=1, le=SIZE)
    encoder_width: int = setting("width of the encoder's tokens", ge=1, le=SIZE)
    decoder_depth: int = setting("number of the decoder's blocks", ge=1, le=SIZE)
    decoder_width: int = setting("width of the decoder's tokens and of the taps", ge=1, le=SIZE)
    head_dim: int = setting("width of a head of attention", ge=1, le=SIZE)
    mlp_ratio: float = setting("inner width of an MLP divided by its width, rounded down", ge=1, le=SIZE)
    norm_eps: float = setting("epsilon of the LayerNorms", ge=0, le=1)
    mask_positions: bool = setting(
        "whether registers that are not kept, or whose image is withheld, have a position too"
    )
    gradient_checkpointing: bool = setting("recompute the blocks in the backward pass: less memory, more time")
    family: ClassVar[str] = "flextok"
    noun: ClassVar[str] = "tokenizer"
    is_diffusers_unet: ClassVar[bool] = False
    condition_parts: ClassVar[tuple[str, ...]] = (IMAGE, KEEP)

    @property
    def base(self) -> str | None:
        return None if self.weights == RANDOM else self.weights

    @property
    def codes(self) -> int:
        return prod(self.levels)

    def check(self, latent_shape: tuple[int, int, int]) -> None:
        check_patches(self.patch, latent_shape)
        check_levels(self.levels)
        check_width("encoder_width", self.encoder_width, self.head_dim)
        check_width("decoder_width", self.decoder_width, self.head_dim)

    def check_tap(self, tap: str) -> None:
        decoder_block(tap, self.decoder_depth)

    def check_grids(self, latent_shape: tuple[int, int, int], grids: Mapping[str, Sequence[int]]) -> None:
        own = [side // self.patch for side in latent_shape[1:]]
        for key, grid in grids.items():
            if list(grid) != own:
                ours, teachers = ("x".join(map(str, g)) for g in (own, grid))
                raise UserError(
                    f"this FlexTok has {ours} patches and the teacher {teachers} tokens, which this head compares one "
                    f"by one: give {key}={own} (and a teacher.image_size that has them), or head=flextok_mlp"
                )

    def check_adapters(self, targets: str, blocks: str) -> None:
        raise UserError(NO_ADAPTERS)

    def check_rate(self, rate: float) -> None:
        if self.weights == RANDOM and rate <= FINE_TUNING:
            raise UserError(
                f"optimizer.lr.backbone={rate} is a rate for fine-tuning trained weights, and random weights would "
                "hardly change: give backbone.weights=FILE, warm_start.checkpoint=RUN or "
                "optimizer=adamw_flextok_scratch"
            )

    def check_files(self) -> None:
        """No check: it needs no files besides its weights."""

    def hub_files(self) -> dict[str, list[str]]:
        return {}

    def find_weights(self, path: Path) -> FoundWeights:
        file = path / EXPORTED if path.is_dir() else path
        if not file.is_file():
            raise UserError(
                f"checkpoint={path} has no {EXPORTED}, which an export of FlexTok has; give the file itself"
            )
        return FoundWeights(WeightsKind.backbone, (file,))

    def write_stand_ins(self, folder: Path, num_classes: int) -> dict[str, Any]:
        return {}

    def build(
        self, *, latent_shape: tuple[int, int, int], num_classes: int, widths: Mapping[str, int] | None = None
    ) -> FlexTokNetwork:
        """The network. Raises UserError if the sizes are inconsistent or do not fit the file of weights."""
        from urepa.models.backbones.flextok_net import load_weights

        network = self.build_without_weights(latent_shape=latent_shape, num_classes=num_classes, widths=widths)
        if self.weights != RANDOM:
            load_weights(network, Path(self.weights))
        return network

    def build_without_weights(
        self, *, latent_shape: tuple[int, int, int], num_classes: int, widths: Mapping[str, int] | None = None
    ) -> FlexTokNetwork:
        from urepa.models.backbones.flextok_net import FlexTokNetwork
        from urepa.models.register_layers import Sizes

        assert widths is not None, "the condition is the image"
        assert widths[IMAGE] == latent_shape[0], "an image's tokens are the latent's pixels"
        self.check(latent_shape)
        return FlexTokNetwork(
            latent_shape,
            self.patch,
            self.registers,
            Sizes(self.encoder_depth, self.encoder_width, self.head_dim, self.mlp_ratio, self.norm_eps),
            Sizes(self.decoder_depth, self.decoder_width, self.head_dim, self.mlp_ratio, self.norm_eps),
            self.levels,
            str(self.nested_dropout),
            self.mask_positions,
            self.gradient_checkpointing,
        )

    def description(self, facts: BackboneFacts) -> list[str | Formula]:
        dropout = DROPOUTS[str(self.nested_dropout)].format(registers=number(self.registers))
        masked = "" if str(self.nested_dropout) == "none" else "; the others become a learned mask token"
        places = "all registers" if self.mask_positions else "the registers that are kept"
        recomputed = " The blocks are computed again in the backward pass." if self.gradient_checkpointing else ""
        return [
            f"The backbone is a FlexTok tokenizer{facts.initial_weights(self.base)}, over {self.patch}×{self.patch} "
            f"patches of x0 of {facts.x0_shape}. Its encoder, {self.encoder_depth} blocks of width "
            f"{self.encoder_width}, takes the clean patches and {number(self.registers)} learned registers, where a "
            "register attends to all patches and the registers before it, and quantises each register to one of "
            f"{number(self.codes)} codes (FSQ with {', '.join(map(str, self.levels))} levels). Its decoder, "
            f"{self.decoder_depth} blocks of width {self.decoder_width} with separate adaLN-Zero modulations for "
            f"patches and registers, denoises the patches joined with the registers. Attention heads are "
            f"{self.head_dim} wide, MLPs {self.mlp_ratio:g} times as wide as their tokens, and the epsilon of the "
            f"LayerNorms is {number(self.norm_eps)}. {dropout}{masked}. If the image is withheld, all registers are a "
            f"learned null token. A learned position is added to {places}.{recomputed}"
        ]

    def model_card(self, facts: CardFacts) -> str:
        return (
            f"{code_block(USE.format(command=facts.command), 'bash')}\n\nNames and shapes are those of `urepa`'s own "
            "FlexTok (urepa/models/backbones/flextok_net.py)."
        )

    def hub_metadata(self) -> dict[str, Any]:
        return {"tags": ["urepa", "flextok"]}
