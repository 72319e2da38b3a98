"""What a backbone declares of itself, and what its module answers; what LoRA declares (see `urepa.core.protocols`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from urepa.core.part_names import CLASS

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from urepa.core.conditions import Condition
    from urepa.core.descriptions import BackboneFacts, CardFacts, Formula
    from urepa.core.types import Denoised


class WeightsKind(Enum):
    """How published weights meet the backbone that is composed."""

    backbone = "all weights of a backbone that reads them itself, as backbone.weights="
    lora = "adapters on the composed base weights, which the network's load_adapters(file) reads"
    unet = "all that trains in a backbone without base weights, which the network's read_values(files) names"


@dataclass(frozen=True)
class FoundWeights:
    """Published weights on this disk, and the files that are read of them."""

    kind: WeightsKind
    files: tuple[Path, ...]


class BackboneNetwork(Protocol):
    """The module. Taps are handed out as they are: the backbone projects nothing."""

    # its parts in the order of the forward pass, for tables of costs
    stages: tuple[str, ...]
    # names of the classes of its repeated blocks, each of which trainer.compile compiles by itself
    regions: tuple[str, ...]

    def tap_width(self, tap: str) -> int:
        """D of a tap's tokens. UserError for a tap that it has not."""
        ...

    def trains_before(self, tap: str) -> bool:
        """Does something trainable precede the tap? If not, its alignment term reaches the head alone."""
        ...

    def freeze_after(self, taps: tuple[str, ...]) -> None:
        """Freezes what no tap depends on: without a diffusion term it would have no gradient."""
        ...

    def lora_modules(self, targets: str, blocks: str) -> str:
        """A regular expression for the names of the modules that have adapters (`urepa.models.lora.adapters.LoRA`).
        UserError for layers that it has not."""
        ...

    def add_adapter(self, config: Any) -> None:
        """Adds peft's adapters.

        Args:
            config: `peft.LoraConfig`.
        """
        ...

    def stage_of(self, name: str) -> str:
        """In which of `stages` a module or parameter of this name works."""
        ...

    def export(self, folder: Path) -> None:
        """Writes its weights as others load them, with the adapters that it has."""
        ...

    def forward(
        self, x_t: Tensor, t_B: Tensor, condition: Condition, taps: tuple[str, ...] = (), rows_R: Tensor | None = None
    ) -> Denoised:
        """The prediction for x_t [B,C,H,W] at the objective's times t [B], and the tapped states of the whole batch.

        Args:
            rows_R: the samples [R] whose prediction is asked for (None: all). With none the pass may stop after the
                deepest tap.
        """
        ...


class Backbone(Protocol):
    """The denoiser (urepa/models/backbones/). `urepa.models.drawn_backbone.DrawnBackbone` answers for one that reads no
    files."""

    # What `arm.families`, tags of runs and tables call it. Several declarations may be of one family.
    family: ClassVar[str]
    # What a sentence calls its network: "The whole U-Net was trained".
    noun: ClassVar[str]
    # Whether the module has diffusers' UNet2DConditionModel as `unet` and its conditions as `embedding_KLE`: what bench
    # can take apart, and whose exports have diffusers' layout.
    is_diffusers_unet: ClassVar[bool]

    @property
    def base(self) -> str | None:
        """The name of the weights that it begins with; None: random ones."""
        ...

    def check(self, latent_shape: tuple[int, int, int]) -> None:
        """UserError where its settings do not fit together, or x0 [C,H,W]."""
        ...

    def check_tap(self, tap: str) -> None:
        """UserError for a tap that it has not."""
        ...

    def check_grids(self, latent_shape: tuple[int, int, int], grids: Mapping[str, Sequence[int]]) -> None:
        """UserError where a head that does not resize meets a teacher of another grid than the taps have, as far as
        settings tell.

        Args:
            grids: rows and columns of each teacher's tokens, by its key in the config.
        """
        ...

    def check_adapters(self, targets: str, blocks: str) -> None:
        """UserError where it has no such layers to adapt, or adapters would train nothing."""
        ...

    def check_files(self) -> None:
        """UserError where a file that a run needs beside the weights is not there."""
        ...

    def hub_files(self) -> dict[str, list[str]]:
        """What `prefetch` fetches: patterns of files by the name of a repository on the hub, with its revision."""
        ...

    def find_weights(self, path: Path) -> FoundWeights:
        """What `generate checkpoint=` finds at a path that is there. UserError where it is not for this backbone."""
        ...

    def write_stand_ins(self, folder: Path, num_classes: int) -> dict[str, Any]:
        """Writes random stand-ins of the files that a run needs beside the weights, to time steps without data. Returns
        the settings that name them."""
        ...

    def build(self, *, latent_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        """The network (`BackboneNetwork`), its weights read, or drawn from torch's generator.

        Args:
            latent_shape: of x0, [C,H,W].
            num_classes: classes have the ids from 0; the id after the last one is the null condition.
        """
        ...

    def build_without_weights(self, *, latent_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        """The same module at random weights, also on the meta device: no weights are read or fetched."""
        ...

    def description(self, facts: BackboneFacts) -> list[str | Formula]:
        """Its network, initial weights and condition as `describe` writes them."""
        ...

    def model_card(self, facts: CardFacts) -> str:
        """How the files of an export are used, as Markdown."""
        ...

    def hub_metadata(self) -> dict[str, Any]:
        """What the head of a model card begins with, for model hubs: `tags`, and `library_name` where there is one."""
        ...


class ConditionedBackbone(Protocol):
    """What a `Backbone` has beside where its condition is not a class id. `build` and `build_without_weights` take one
    more argument, `widths`: the width of each part, by its name (0 of ids)."""

    condition_parts: ClassVar[tuple[str, ...]]  # the names of the parts that it takes, all of them
    # of parts that a condition may have beside them, which it does not look at; without this attribute: none
    unused_parts: ClassVar[tuple[str, ...]]


class TextWidths(Protocol):
    """Additional members of a `ConditionedBackbone` that takes only text of certain widths."""

    def check_widths(self, widths: Mapping[str, int]) -> None:
        """Raises UserError if the parts of a condition, by name, have other widths than in the backbone's files, as far
        as these are on this disk."""
        ...


def condition_parts(backbone: Any) -> tuple[str, ...]:
    """The parts that a declared backbone takes."""
    parts: tuple[str, ...] = getattr(backbone, "condition_parts", (CLASS,))
    return parts


def takes_parts(backbone: Any, made: Iterable[str]) -> bool:
    """Can a declared backbone be conditioned on these parts?"""
    taken = set(condition_parts(backbone))
    return taken <= set(made) <= taken | set(getattr(backbone, "unused_parts", ()))


class PatchTokens(Protocol):
    """Additional members of a `BackboneNetwork` whose tapped tokens each stand for a patch of x0, in their order."""

    patch_values: int  # the number of x0's values in a patch


class FrozenBackbone(Protocol):
    """What a `Backbone` has beside where its weights can be read in the type in which adapters leave them frozen."""

    def build_frozen(self, dtype: torch.dtype, *, latent_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        """As `build` (with `widths` where that has them), with the weights that are read in `dtype`, but for those of
        norms: as if they had been cast after `build` by `urepa.models.speed_switches.hold_frozen_in_bf16`."""
        ...


class TrainedObjective(Protocol):
    """What a `Backbone` has beside where its weights, or its times, are of one kind of objective."""

    def check_objective(self, objective: Any) -> None:
        """UserError for a declared objective (`urepa.core.protocols.Objective`) of another kind."""
        ...


class ChangingLatents(Protocol):
    """What a `Backbone` has beside where x_t may have other rows and columns from step to step. One without takes x0 of
    one shape a run."""

    def check_latents(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """UserError where one run cannot have x0 of all these shapes [C,H,W]. Each has passed `check`."""
        ...


class Tokenizer(Protocol):
    """Additional members of a `Backbone` that encodes an image as a sequence of codes. Its network has `encode(x0)`,
    which returns the codes [B,K], and `condition_of(codes_BK, kept_B)`, the condition under which an image is decoded
    from its first `kept_B` codes."""

    registers: int  # K, the number of codes per image

    @property
    def codes(self) -> int:
        """The number of different codes, which are integers from 0."""
        ...


class BackboneOfRates(Protocol):
    """Additional members of a `Backbone` that cannot be trained at every learning rate."""

    def check_rate(self, rate: float) -> None:
        """Raises UserError if training all its weights at this peak learning rate would hardly change them."""
        ...


class LoRA(Protocol):
    """Which weights of the backbone train (urepa/models/lora/)."""

    # Of what trains in the backbone: its key in optimizer.lr and optimizer.weight_decay.
    group: ClassVar[str]
    # Whether it freezes the backbone's own weights, and adapters beside them train.
    has_adapters: ClassVar[bool]

    @property
    def tag(self) -> str:
        """What runs are found by: the rank, or "none"."""
        ...

    def check(self, backbone: Backbone) -> None:
        """UserError where it does not go with this backbone."""
        ...

    def build(self, backbone: nn.Module) -> None:
        """Sets what trains in a `BackboneNetwork`, in place, and adds adapters, drawn from torch's generator."""
        ...

    def description(self, parameters: int, tensors: int) -> list[str | Formula]:
        """What trains of the backbone, as `describe` writes it.

        Args:
            parameters, tensors: how many train.
        """
        ...

    def trained(self, noun: str) -> str:
        """The clause on what was trained, for users of published weights, as Markdown.

        Args:
            noun: `Backbone.noun`.
        """
        ...


@runtime_checkable
class ShapesFromValues(Protocol):
    """A backbone's network with tensors whose shapes depend on values, such as masks or the choice of experts."""

    def fix_shapes(self) -> None:
        """Makes them those of full texts and of evenly used experts, so that a step is counted without values
        (urepa/costs). It computes something else then."""
        ...


@dataclass(frozen=True)
class ExpectedRange:
    """Where a logged value is expected to be. It is judged at the first logged step from `step` on, and with `onwards`
    at all later ones too, until it is outside once."""

    key: str  # in metrics.jsonl
    low: float | None
    high: float | None
    step: int
    onwards: bool = False


@runtime_checkable
class ObservedNetwork(Protocol):
    """A backbone's network of which training logs more: gradient norms of some of its parameters, the RMS of its
    prediction, the shares of withheld parts, the loss under withheld conditions, and the block of a value that is not
    finite (`urepa.training.observed`)."""

    # parameters, or the beginnings of their names up to a dot, whose gradients are logged as grad_norm/NAME
    observed: tuple[str, ...]
    # a logged value outside of these is remarked on, once in a run
    ranges: tuple[ExpectedRange, ...]
