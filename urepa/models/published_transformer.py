"""The base class of declared backbones that are transformers in diffusers' files.

A family is a declaration that inherits `PublishedTransformer`, and a subclass of
`urepa.models.backbones.diffusers_transformer_net.DiffusersTransformer`, which its `adapter` returns. The declaration's
settings are the fields of diffusers' config.json in which published models of the family differ, with the same names.
Another model of the family therefore needs only a file in `conf/backbone`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from urepa.core.abstract import Abstract
from urepa.core.backbone_protocols import FoundWeights, WeightsKind
from urepa.core.descriptions import BackboneFacts, CardFacts, Formula
from urepa.core.errors import UserError
from urepa.core.files import read_json
from urepa.core.hub_names import is_hub_id
from urepa.core.part_names import LAYERS, POOLED, TEXT
from urepa.models.backbones.backbone_sizes import (
    LORA,
    PEFT,
    RANDOM,
    check_transformer_adapters,
    transformer_block,
    transformer_files,
)
from urepa.models.diffusers_cards import transformer_card
from urepa.models.diffusers_files import hub_files

if TYPE_CHECKING:
    import torch

    from urepa.models.backbones.diffusers_transformer_net import DiffusersTransformer


class PublishedTransformer(Abstract):
    """The base of such a declaration (`urepa.core.backbone_protocols.Backbone`)."""

    weights: str  # a setting of the declaration, like the next one
    gradient_checkpointing: bool
    noun: ClassVar[str] = "transformer"
    is_diffusers_unet: ClassVar[bool] = False

    # --- defined by a family ---
    family: ClassVar[str]
    title: ClassVar[str]  # the name in sentences, such as "Stable Diffusion 3"
    condition: ClassVar[str]  # how the network uses a caption, in sentences
    condition_parts: ClassVar[tuple[str, ...]]
    unused_parts: ClassVar[tuple[str, ...]] = (POOLED, LAYERS)  # parts that a condition may have besides
    network: ClassVar[str]  # the class in diffusers
    # fields of config.json in which all published models of the family differ from the class's defaults
    published: ClassVar[Mapping[str, Any]] = {}
    # the fields with numbers of channels, each with the number of them per channel of x0
    channel_fields: ClassVar[Mapping[str, int]] = {"in_channels": 1, "out_channels": 1}
    text_fields: ClassVar[Mapping[str, str]]  # the fields with widths of the condition's parts, each with its part
    own_settings: ClassVar[tuple[str, ...]] = ()  # settings besides weights and checkpointing not in config.json
    block_counts: ClassVar[tuple[str, ...]] = ("num_layers",)  # the settings with the number of blocks in each list
    patch: ClassVar[int] = 2  # side of an image token, in latent pixels
    vae_factor: ClassVar[int] = 8  # side of a latent pixel, in pixels of the image
    usual_tap: ClassVar[str]  # the tap that an error suggests
    predicts: ClassVar[str] = "flow"  # "flow" or "ddpm": the kind of objective that the weights were trained with
    loads_lora: ClassVar[bool] = True  # whether the pipeline has load_lora_weights

    @property
    @abstractmethod
    def pipeline(self) -> str:
        """The name of the pipeline in diffusers."""

    @abstractmethod
    def adapter(self) -> type[DiffusersTransformer]:
        """The class of the network here. The call imports torch."""

    def network_settings(self) -> dict[str, Any]:
        """The network's arguments besides diffusers' module."""
        return {name: getattr(self, name) for name in self.own_settings}

    # --- settings ---

    def variant(self) -> dict[str, Any]:
        """The settings that are fields of config.json."""
        others = {"_target_", "weights", "gradient_checkpointing", *self.own_settings}
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in others}  # type: ignore[arg-type]
        return {
            name: tuple(value) if isinstance(value, Sequence | list) and not isinstance(value, str) else value
            for name, value in own.items()
        }

    def architecture(self) -> dict[str, Any]:
        """The fields of config.json that differ from the class's defaults."""
        return {**self.published, **self.variant()}

    def of_data(self, channels: int, widths: Mapping[str, int]) -> dict[str, Any]:
        """The fields of config.json that random weights take from the data: x0's channels and the widths of the
        condition's parts, by name."""
        own = self.variant()
        of_channels = {name: times * channels for name, times in self.channel_fields.items()}
        of_text = {name: widths[part] for name, part in self.text_fields.items() if name not in own}
        return of_channels | of_text

    def text_widths(self, config: Mapping[str, Any]) -> dict[str, int]:
        """The widths of the condition's parts that a network with this config.json takes, by name."""
        return {part: int(config[name]) for name, part in self.text_fields.items() if name in config}

    @property
    def blocks(self) -> int:
        """The number of blocks in all lists."""
        return sum(int(getattr(self, name)) for name in self.block_counts)

    @property
    def base(self) -> str | None:
        return None if self.weights == RANDOM else self.weights

    # --- checks ---

    def check(self, latent_shape: tuple[int, int, int]) -> None:
        _, height, width = latent_shape
        if height % self.patch or width % self.patch:
            raise UserError(
                f"{self.title} takes {self.patch}x{self.patch} latent pixels as one token, and x0 is {height}x{width}; "
                f"give images whose sides are multiples of {self.patch * self.vae_factor} pixels"
            )

    def check_latents(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """No check of its own: any shapes that `check` accepts are valid together."""

    def check_widths(self, widths: Mapping[str, int]) -> None:
        """Raises UserError if the config.json of a local folder is that of another class or takes text of other widths.
        Random weights take those of the data, and what a hub id takes is known when it is fetched."""
        places = [Path(self.weights) / place / "config.json" for place in ("transformer", ".")]
        for file in [file for file in places if file.is_file()][:1]:
            config = read_json(file)
            self.check_class(config, self.weights)
            self.compare_widths(config, widths)

    def check_class(self, config: Mapping[str, Any], where: str) -> None:
        """Raises UserError if a config.json is that of another class."""
        found = config.get("_class_name")
        if found != self.network:
            raise UserError(
                f"{where} holds a {found}, not a {self.network}, which {self.title} is; choose the backbone that these "
                "weights are of"
            )

    def compare_widths(self, config: Mapping[str, Any], widths: Mapping[str, int]) -> None:
        """Raises UserError if a network with this config.json takes text of other widths than `widths`, by name."""
        for part, width in self.text_widths(config).items():
            if widths[part] != width:
                what = "text" if part == TEXT else f"{part}, a part of the condition,"
                raise UserError(
                    f"the transformer of {self.weights} takes {what} of width {width}; data.text_encoder gives "
                    f"{widths[part]}: choose the text encoder that {self.title} was trained with"
                )

    def check_objective(self, objective: Any) -> None:
        """Raises UserError if the objective's times or target differ from those of the weights' training."""
        is_flow = objective.prediction_type == "flow"
        if is_flow is not (self.predicts == "flow"):
            what = "the velocity of a flow" if self.predicts == "flow" else "the noise of a DDPM"
            raise UserError(
                f"{self.title} predicts {what}; choose an objective of that kind (docs/families.md names its own)"
            )
        if is_flow and str(getattr(objective, "path", "linear")) != "linear":
            raise UserError(f"{self.title} predicts a flow on the straight path; drop objective.path")

    def check_tap(self, tap: str) -> None:
        transformer_block(tap, self.blocks, self.usual_tap)

    def check_grids(self, latent_shape: tuple[int, int, int], grids: Mapping[str, Sequence[int]]) -> None:
        own = [side // self.patch for side in latent_shape[1:]]
        for key, grid in grids.items():
            if list(grid) != own:
                ours, teachers = ("x".join(map(str, g)) for g in (own, grid))
                raise UserError(
                    f"this {self.noun} has {ours} image tokens and the teacher {teachers} tokens, which this head "
                    f"compares one by one: give {key}={own} (and a teacher.image_size that has them), "
                    "loss.grid=student, or head=layer_norm_linear"
                )

    def check_adapters(self, targets: str, blocks: str) -> None:
        check_transformer_adapters(targets, blocks)

    def check_files(self) -> None:
        """No check: it needs no files besides its weights."""

    # --- files ---

    def hub_files(self) -> dict[str, list[str]]:
        return {self.weights: hub_files("transformer")} if is_hub_id(self.weights) else {}

    def find_weights(self, path: Path) -> FoundWeights:
        names = (LORA,) if self.loads_lora else PEFT[1:]
        if path.is_file():
            return FoundWeights(WeightsKind.lora, (path,))
        for name in names:
            if (path / name).is_file():
                beside = () if self.loads_lora else (path / PEFT[0],)
                return FoundWeights(WeightsKind.lora, (path / name, *beside))
        missing = f"neither {names[0]} nor transformer/config.json nor config.json"
        return FoundWeights(WeightsKind.backbone, tuple(transformer_files(path, missing)))

    def write_stand_ins(self, folder: Path, num_classes: int) -> dict[str, Any]:
        return {}

    # --- the network ---

    def build(
        self, *, latent_shape: tuple[int, int, int], num_classes: int, widths: Mapping[str, int] | None = None
    ) -> DiffusersTransformer:
        import torch

        known: Any = {"latent_shape": latent_shape, "num_classes": num_classes, "widths": widths}
        return self.build_frozen(torch.float32, **known)

    def build_frozen(
        self,
        dtype: torch.dtype,
        *,
        latent_shape: tuple[int, int, int],
        num_classes: int,
        widths: Mapping[str, int] | None = None,
    ) -> DiffusersTransformer:
        from urepa.models.transformer_weights import load_transformer, network_of

        assert widths is not None, "the condition of its track is text"
        return network_of(self, load_transformer(self, dtype, latent_shape[0], widths), latent_shape, widths)

    def build_without_weights(
        self, *, latent_shape: tuple[int, int, int], num_classes: int, widths: Mapping[str, int] | None = None
    ) -> DiffusersTransformer:
        """The network without weights. Its architecture is that of a local folder's config.json, or else of the
        settings."""
        from urepa.models.transformer_weights import network_of, transformer_without_weights

        assert widths is not None, "the condition of its track is text"
        return network_of(self, transformer_without_weights(self, latent_shape[0], widths), latent_shape, widths)

    # --- texts ---

    def description(self, facts: BackboneFacts) -> list[str | Formula]:
        recomputed = " Its blocks are computed again in the backward pass." if self.gradient_checkpointing else ""
        return [
            f"The backbone is the transformer of {self.title}{facts.initial_weights(self.base)}, of {self.blocks} "
            f"blocks, on latents of {facts.x0_shape}, {self.patch}×{self.patch} of which are a token. {self.condition}"
            f"{recomputed}"
        ]

    def model_card(self, facts: CardFacts) -> str:
        return transformer_card(facts, self.base, self.pipeline, self.network, self.vae_factor)

    def hub_metadata(self) -> dict[str, Any]:
        return {"library_name": "diffusers", "tags": ["urepa"]}
