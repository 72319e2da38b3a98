"""NanoDiT: a small transformer conditioned on text, and on an image's vector and spatial tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from urepa.core.backbone_protocols import FoundWeights, WeightsKind
from urepa.core.declared_keys import SIZE, setting
from urepa.core.descriptions import BackboneFacts, CardFacts, Formula, code_block
from urepa.core.errors import UserError
from urepa.core.part_names import CLS, PATCHES, POOLED, TEXT
from urepa.models.backbones.backbone_sizes import EXPORTED, check_sit, sit_block
from urepa.models.drawn_backbone import DrawnBackbone

if TYPE_CHECKING:
    from urepa.models.backbones.nanodit_net import NanoDiTNetwork

CLS_PLACES = {
    "both": "is added to the time embedding, which sets the modulations, and is a token of the context{time}",
    "adaln": "is added to the time embedding, which sets the modulations",
    "context": "is a token of the context{time}",
}


class ClsPlace(Enum):
    both = "both"
    adaln = "adaln"
    context = "context"


@dataclass
class NanoDiT(DrawnBackbone):
    """A transformer over latent patches with adaLN without gates and one cross-attention to text, an image encoder's
    vector and its patch tokens."""

    _target_: str = "urepa.models.backbones.nanodit.NanoDiT"
    patch: int = setting("side of a patch, in latent pixels", ge=1, le=SIZE)
    depth: int = setting("number of blocks", ge=1, le=SIZE)
    width: int = setting("width of a token", ge=1, le=SIZE)
    heads: int = setting("heads of attention in a block", ge=1, le=SIZE)
    cls: ClsPlace = setting(
        "where the image encoder's vector goes: into the modulations (adaln), into the context as a token (context), "
        "or both"
    )
    cls_with_time: bool = setting("whether the vector's token in the context has the time's embedding added")
    patches: bool = setting("whether the context has the image encoder's patch tokens")
    patch_positions: bool = setting("whether sine-cosine positions are added to the patch tokens")
    gradient_checkpointing: bool = setting("recompute the blocks in the backward pass: less memory, more time")
    family: ClassVar[str] = "nanodit"
    noun: ClassVar[str] = "transformer"
    condition_parts: ClassVar[tuple[str, ...]] = (TEXT, CLS, PATCHES)
    unused_parts: ClassVar[tuple[str, ...]] = (POOLED,)

    def check(self, latent_shape: tuple[int, int, int]) -> None:
        check_sit(self.patch, self.width, self.heads, latent_shape)
        if str(self.cls) == "adaln" and not self.cls_with_time:
            raise UserError(
                "backbone.cls_with_time=false has no effect with backbone.cls=adaln, where the vector is no token of "
                "the context; drop it"
            )
        if self.patch_positions and not self.patches:
            raise UserError("backbone.patch_positions has no effect with backbone.patches=false; drop it")

    def check_latents(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Nothing to check: x_t may change its rows and columns."""

    def check_shuffled(self) -> None:
        """Raises UserError if the order of the patch tokens has no effect."""
        if not self.patch_positions:
            raise UserError(
                "data.shuffle_patches has no effect on a cross-attention without positions, which does not depend on "
                "the order of its context; give backbone.patch_positions=true, or drop it"
            )

    def find_weights(self, path: Path) -> FoundWeights:
        file = path / EXPORTED if path.is_dir() else path
        if not file.is_file():
            raise UserError(
                f"checkpoint={path} has no {EXPORTED}, which an export of NanoDiT has; give the file itself"
            )
        return FoundWeights(WeightsKind.unet, (file,))

    def model_card(self, facts: CardFacts) -> str:
        asked = "prompt=TEXT image=FILE guidance_text=3 guidance_image=2"
        use = f"python -m urepa.generate checkpoint=FOLDER {facts.command} {asked}"
        return (
            f"{code_block(use, 'bash')}\n\nNames and shapes are those of `urepa`'s own NanoDiT "
            "(urepa/models/backbones/nanodit_net.py)."
        )

    def check_tap(self, tap: str) -> None:
        sit_block(tap, self.depth)

    def check_grids(self, latent_shape: tuple[int, int, int], grids: Mapping[str, Sequence[int]]) -> None:
        own = [side // self.patch for side in latent_shape[1:]]
        for key, grid in grids.items():
            if list(grid) != own:
                ours, teachers = ("x".join(map(str, g)) for g in (own, grid))
                raise UserError(
                    f"this NanoDiT has {ours} patches and the teacher {teachers} tokens, which this head compares one "
                    f"by one: give {key}={own} (and a teacher.image_size that has them), backbone.patch=..., "
                    "loss.grid=student, or head=conv"
                )

    def build(
        self, *, latent_shape: tuple[int, int, int], num_classes: int, widths: Mapping[str, int] | None = None
    ) -> NanoDiTNetwork:
        from urepa.models.backbones.nanodit_net import NanoDiTNetwork

        assert widths is not None, "the condition is text and an image's tokens"
        self.check(latent_shape)
        return NanoDiTNetwork(
            latent_shape,
            self.patch,
            self.depth,
            self.width,
            self.heads,
            (widths[TEXT], widths[CLS], widths[PATCHES]),
            str(self.cls),
            self.cls_with_time,
            self.patches,
            self.patch_positions,
            self.gradient_checkpointing,
        )

    def description(self, facts: BackboneFacts) -> list[str | Formula]:
        place = CLS_PLACES[str(self.cls)].format(time=", with the time embedding added" if self.cls_with_time else "")
        positions = " with sine-cosine positions added" if self.patch_positions else ""
        patches = f", and its patch tokens{positions}" if self.patches else ""
        unused = "" if self.patches else " The encoder's patch tokens are not used."
        recomputed = " The blocks are computed again in the backward pass." if self.gradient_checkpointing else ""
        return [
            f"The backbone is a NanoDiT{facts.initial_weights(self.base)}: {self.depth} blocks of width {self.width} "
            f"with {self.heads} attention heads over {self.patch}×{self.patch} patches of x0 of {facts.x0_shape}, with "
            "fixed sine-cosine positions. A block has self-attention, cross-attention to a context, and an MLP; shift "
            "and scale of the LayerNorm before each are modulated, without gates. The context has the caption's tokens "
            f"without padding{patches}; the image encoder's vector {place}. A withheld caption or image is replaced by "
            f"learned nulls before the projections, one token for all positions of a part.{unused}{recomputed}"
        ]
