"""SiT: a transformer over latent patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from urepa.core.backbone_protocols import FoundWeights, WeightsKind
from urepa.core.comparability import EVERY_TERM
from urepa.core.declared_keys import SIZE, setting
from urepa.core.descriptions import BackboneFacts, CardFacts, Formula, code_block, number
from urepa.core.errors import UserError
from urepa.core.hub_names import ensure_local, hub_file
from urepa.models.backbones.backbone_sizes import (
    EXPORTED,
    RANDOM,
    check_route,
    check_sit,
    check_transformer_adapters,
    sit_block,
)

if TYPE_CHECKING:
    from urepa.models.backbones.sit_net import SiTNetwork

POSITIONS = {"sincos": "fixed sine-cosine positions", "learned": "learned positions"}
USE = """\
python -m urepa.generate checkpoint=FOLDER {command} guidance=1.8          # these weights
python -m urepa.train {command} backbone.weights=FOLDER/model.safetensors  # a run that begins with them
"""


class SiTPositions(Enum):
    sincos = "sincos"
    learned = "learned"


@dataclass
class SiT:
    """A class-conditional SiT (Ma et al. 2024, arXiv 2401.08740); the last row of its class embedding is the null
    condition."""

    _target_: str = "urepa.models.backbones.sit.SiT"
    weights: str = setting('"random", or a file in the layout of the published checkpoints')
    patch: int = setting("side of a patch, in latent pixels", ge=1, le=SIZE)
    depth: int = setting("number of blocks", ge=1, le=SIZE)
    width: int = setting("width of a token", ge=1, le=SIZE)
    heads: int = setting("heads of attention in a block", ge=1, le=SIZE)
    qk_norm: bool = setting("LayerNorm on queries and keys")
    positions: SiTPositions = setting("positions added to the embedded patches: fixed sine-cosine, or learned")
    route: list[int] = setting(
        "the first and the last of the blocks that some tokens skip in training, counted from 0; []: none",
        [],
        ge=0,
        le=SIZE,
    )
    route_share: float = setting("share of the tokens that skip these blocks in training", 0.0, ge=0, le=0.99)
    class_token: int = setting(
        "values of the teacher's class token that is denoised with the image, which is its width; 0: none",
        0,
        ge=0,
        le=SIZE,
        alters=(EVERY_TERM,),  # the noised class token carries information about the image
    )
    family: ClassVar[str] = "sit"
    noun: ClassVar[str] = "transformer"
    is_diffusers_unet: ClassVar[bool] = False

    @property
    def base(self) -> str | None:
        return None if self.weights == RANDOM else self.weights

    def check(self, latent_shape: tuple[int, int, int]) -> None:
        check_sit(self.patch, self.width, self.heads, latent_shape)
        check_route(self.route, self.route_share, self.depth)
        if self.class_token and self.route:
            raise UserError(
                f"backbone.route={list(self.route)} has no place for the token of backbone.class_token="
                f"{self.class_token}: give one of the two"
            )

    def check_latents(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        if len(shapes) > 1 and str(self.positions) == "learned":
            sides = ", ".join(f"{height}x{width}" for _, height, width in shapes)
            raise UserError(
                f"backbone.positions=learned learns the positions of one grid, and x0 has the shapes {sides}; give "
                "backbone.positions=sincos, or data of one shape"
            )

    def check_tap(self, tap: str) -> None:
        index = sit_block(tap, self.depth)
        if self.route and self.route[0] <= index < self.route[1]:
            raise UserError(
                f"backbone.route={list(self.route)}: some tokens skip {tap} in training; give a tap before block "
                f"{self.route[0]}, block_{self.route[1]} or a later one"
            )

    def check_attention(self, tap: str) -> None:
        index = sit_block(tap, self.depth)
        if self.route and self.route[0] <= index <= self.route[1]:
            raise UserError(
                f"backbone.route={list(self.route)}: some tokens skip {tap} in training, so its attention is not that "
                f"of all tokens; give loss.attention a block before {self.route[0]} or after {self.route[1]}"
            )

    def check_grids(self, latent_shape: tuple[int, int, int], grids: Mapping[str, Sequence[int]]) -> None:
        own = [side // self.patch for side in latent_shape[1:]]
        for key, grid in grids.items():
            if list(grid) != own:
                ours, teachers = ("x".join(map(str, g)) for g in (own, grid))
                raise UserError(
                    f"this SiT has {ours} patches and the teacher {teachers} tokens, which this head compares one by "
                    f"one: give {key}={own} (and a teacher.image_size that has them), backbone.patch=..., "
                    "loss.grid=student, or head=conv"
                )

    def check_adapters(self, targets: str, blocks: str) -> None:
        """Raises UserError for random weights: their gates are 0 and frozen, so adapters would get no gradient."""
        if self.weights == RANDOM:
            raise UserError(
                "lora on a SiT of random weights would train nothing: give backbone.weights=FILE, or lora=none"
            )
        check_transformer_adapters(targets, blocks)

    def check_files(self) -> None:
        """No check: it needs no files besides its weights."""

    def hub_files(self) -> dict[str, list[str]]:
        file = hub_file(self.weights)
        return {} if file is None else {f"{file.repository}@{file.revision}": [file.file]}

    def find_weights(self, path: Path) -> FoundWeights:
        file = path / EXPORTED if path.is_dir() else path
        if not file.is_file():
            raise UserError(
                f"checkpoint={path} has no model.safetensors, which a SiT's export has; give the file itself"
            )
        return FoundWeights(WeightsKind.backbone, (file,))

    def write_stand_ins(self, folder: Path, num_classes: int) -> dict[str, Any]:
        return {}

    def build(self, *, latent_shape: tuple[int, int, int], num_classes: int) -> SiTNetwork:
        """Raises UserError if the sizes are inconsistent or do not fit the file of the weights. It may be a file in the
        layout of the published SiT and REPA checkpoints, local or on the hub (`urepa.core.hub_names`), or the folder
        of an export."""
        from urepa.models.backbones.sit_published_net import load_published

        network = self.build_without_weights(latent_shape=latent_shape, num_classes=num_classes)
        if self.weights != RANDOM:
            load_published(network, ensure_local(self.weights, "backbone.weights"))
        return network

    def build_without_weights(self, *, latent_shape: tuple[int, int, int], num_classes: int) -> SiTNetwork:
        from urepa.models.backbones.sit_net import SiTNetwork

        check_sit(self.patch, self.width, self.heads, latent_shape)
        sizes = (latent_shape, num_classes, self.patch, self.depth, self.width, self.heads)
        if self.route:
            from urepa.models.backbones.routed_sit_net import RoutedSiTNetwork

            route = (self.route[0], self.route[1])
            return RoutedSiTNetwork(*sizes, self.qk_norm, str(self.positions), route=route, share=self.route_share)
        if self.class_token:
            from urepa.models.backbones.class_token_sit_net import ClassTokenSiTNetwork

            return ClassTokenSiTNetwork(*sizes, self.qk_norm, str(self.positions), class_token=self.class_token)
        return SiTNetwork(*sizes, self.qk_norm, str(self.positions))

    def description(self, facts: BackboneFacts) -> list[str | Formula]:
        normed = " Queries and keys pass a LayerNorm." if self.qk_norm else ""
        route, share, routed = self.route, number(self.route_share), ""
        if route:
            routed = (
                f" In training a share of {share} of each image's tokens, drawn anew at each update, skips the blocks "
                f"{route[0]} to {route[1]}, counted from 0, and is put back behind them (TREAD)."
            )
        denoised = ""
        if self.class_token:
            denoised = (
                f" A class token of {number(self.class_token)} values is denoised with the image: a linear layer and a "
                "LayerNorm make it one more token, and a linear layer of its own predicts it (REG)."
            )
        return [
            f"The backbone is a SiT, a transformer with adaLN-Zero{facts.initial_weights(self.base)}: "
            f"{self.depth} blocks of width {self.width} with {self.heads} attention heads over "
            f"{self.patch}×{self.patch} patches "
            f"of x0 of {facts.x0_shape}, with {POSITIONS[str(self.positions)]}.{normed} The condition is "
            f"one of {number(facts.num_classes + 1)} vectors, a class each and the null condition.{routed}{denoised}"
        ]

    def model_card(self, facts: CardFacts) -> str:
        return (
            f"{code_block(USE.format(command=facts.command), 'bash')}\n\nNames and shapes are those of the published "
            "SiT and REPA checkpoints, without projectors."
            + (" Those of the class token are as in REG's." if self.class_token else "")
        )

    def hub_metadata(self) -> dict[str, Any]:
        return {"tags": ["urepa", "sit"]}
