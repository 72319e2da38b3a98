"""The declarations of parts: one commented protocol for each kind.

A declaration is a dataclass in a file of its own, in the folder of its kind. Its fields are the keys of its config, and
`_target_` is its own dotted name. It loads without torch: `build` imports the network or the mathematics. Backbones and
LoRA are in `urepa.core.backbone_protocols`. Which values two settings, or two parts of a kind, make incomparable is
declared in the terms of `urepa.core.comparability`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

    from urepa.core.descriptions import Formula
    from urepa.core.evaluation_protocols import Metric
    from urepa.core.types import Batch, Tokens


class HeadNetwork(Protocol):
    """`forward(tapped, t_B, grid)`: the state [B,N,D] of a tap, and the times of its samples as the objective has them,
    to tokens [B,h·w,E] on the grid (h, w) that they are compared on, of unit length, in fp32: the teacher's, unless
    `loss.grid` says otherwise. Heads run in fp32 also under bf16. A network with the attribute `unit_length`
    (`urepa.models.layers.Projector`) keeps the tokens' lengths if it is set to False, for a loss that compares them.

    The grids of tap and teacher may differ between steps. If the tap's tokens have a mask, output tokens that depend on
    masked ones, even in part, are masked too."""

    def forward(self, tapped: Tokens, t_B: Tensor, grid: tuple[int, int]) -> Tokens: ...


class Head(Protocol):
    """Maps a tapped state to the teacher's token space (urepa/method/heads/)."""

    # Whether it takes a tap of any grid to another. One that does not is refused where it is asked to.
    resizes: ClassVar[bool]

    def check(self) -> None:
        """Raises UserError if settings that are each in their range do not fit together."""
        ...

    def build(self, *, in_width: int, out_width: int) -> nn.Module:
        """The network (`HeadNetwork`) for one tap and one teacher, with weights drawn from torch's generator.

        Args:
            in_width, out_width: D of the tap and E of the teacher.
        """
        ...

    def description(self) -> str:
        """The layers for `describe`, following "A head of its own maps each tap to the teacher's space: "."""
        ...


class Objective(Protocol):
    """How x0 is noised and what the backbone must predict (urepa/method/objectives/)."""

    # The `prediction_type` of a diffusers scheduler; "flow" if there is no such scheduler.
    prediction_type: ClassVar[str]
    # Attributes with the values of a diffusers scheduler's config, by its keys: beta_start, beta_end, beta_schedule
    # and num_train_timesteps; {} if there is no such scheduler.
    scheduler: ClassVar[Mapping[str, str]]
    # Settings that only affect training: published weights are sampled in the same way for any value.
    training_only: ClassVar[tuple[str, ...]]
    # Whether its samplers can restrict guidance to an interval of times.
    has_intervals: ClassVar[bool]

    @property
    def most_steps(self) -> float:
        """The largest number of steps of its samplers from noise to data; inf: any number."""
        ...

    @property
    def times(self) -> str:
        """Its times, for an error message: "times lie in [0, 1]"."""
        ...

    def check(self) -> None:
        """Raises UserError if settings that are each in their range do not fit together."""
        ...

    def has_time(self, t: float) -> bool:
        """Whether t is one of its times."""
        ...

    def time_at(self, fraction: float) -> float:
        """The time at a share, from 0 to 1, of the way from data to noise: `${time_at:0.5}` in conf/."""
        ...

    def build(self) -> Any:
        """The mathematics (`urepa.method.objectives.objective_math.ObjectiveMath`)."""
        ...

    def description(self) -> list[str | Formula]:
        """What is predicted, from what, and at which times, for `describe`."""
        ...

    def model_card(self) -> str:
        """What is predicted, for users of published weights, as Markdown."""
        ...


class LossMath(Protocol):
    """Computes the loss terms of a step. It is called with the diffusion term of each row [R], the model's output, the
    batch, the step (the index of the update), a function that gathers [B,D] over the ranks to [G,D] with gradient, and
    the weights [B] of the samples' alignment by their times. It returns `urepa.method.training_step.Terms`.

    A loss without taps that aligns the backbone with itself has `own_states` (`urepa.method.self_alignment`) and
    `heads(widths)`, its own heads by tap; if it reads states of the averaged weights, also `second_times(batch,
    objective)`, the times [B] at which these are evaluated; if it reads states of an earlier run's weights, `guidance`,
    the strength of their guidance. With `known(batch, objective)` it computes tensors, by name, before it is called,
    which `Aligned.known` has then. `urepa.method.losses.self_alignment_math.SelfAlignment` is
    its base class. A loss that has alignment terms has `manifold_weight`, the weight of `Terms.manifold`.

    A loss with taps also has what validation needs of it: `manifold_weight`, `teachers` (weights by name),
    `spatial_norm` and `targets(tokens)`, a teacher's tokens as the student's are compared with them. With `grid`, as
    `loss.grid`, its declaration and it say on which grid that is (`urepa.method.alignment_grids`); a loss without it
    compares on the teacher's. Targets are resized to it last. With `attention`, which its declaration has too, it
    compares the attention of these taps with that of these blocks of the teacher (`Batch.attention`).
    """

    taps: Mapping[str, float]
    lambda_max: float
    diffusion_fraction: float  # 0: nothing after the deepest tap is trained
    time_power: float  # exponent of a sample's weight by its time
    schedule: ScheduleMath  # the schedule of this run, with its state

    def lam(self, step: int) -> float:
        """λ of the update with this index."""
        ...

    def is_at_peak(self, step: int) -> bool:
        """Whether a validation at this step counts for the best checkpoint: after λ's warm-up and before a stop."""
        ...

    def is_spike(self, terms: Any, step: int) -> Tensor | None:
        """Whether a term is far above its expected value, as a boolean scalar; None: not checked."""
        ...

    def __call__(
        self,
        diffusion_R: Tensor,
        output: Any,
        batch: Batch,
        step: int,
        gather: Callable[[Tensor], Tensor],
        weight_B: Tensor | float = 1.0,
    ) -> Any: ...


class Loss(Protocol):
    """The loss terms besides the objective's (urepa/method/losses/)."""

    # Columns of a comparison for its own terms. Total, diffusion loss and x0 error are columns of every loss.
    metrics: ClassVar[tuple[Metric, ...]]

    @property
    def taps(self) -> Mapping[str, float]:
        """The taps that are aligned to a teacher, and their weights; without taps there is no teacher and no head of
        conf/head. A loss that aligns the backbone with itself has none (`urepa.method.self_alignment`)."""
        ...

    @property
    def lambda_max(self) -> float:
        """λ after its warm-up, with which the best checkpoint is chosen."""
        ...

    @property
    def diffusion_fraction(self) -> float:
        """The share of samples with a diffusion term."""
        ...

    def check(self) -> None:
        """Raises UserError if settings that are each in their range do not fit together."""
        ...

    def check_teachers(self, names: Collection[str]) -> None:
        """Raises UserError if its settings do not fit the names of several teachers; without names there is one."""
        ...

    def check_layout(self, smallest_group: int, accumulation: int) -> None:
        """Raises UserError if a term cannot be computed. `smallest_group`: samples in the smaller of a training and a
        validation batch. `accumulation`: micro-batches per update."""
        ...

    def check_schedule(self, schedule: Schedule, max_steps: int) -> None:
        """Raises UserError if the schedule does not fit, or a setting has no effect in a run of this length."""
        ...

    def idle_keys(self) -> Mapping[str, str | None]:
        """Keys, groups or patterns of keys that have no effect with this loss, each with the reason as a continuation
        of "has no effect with"; giving one is an error. The first that matches a key counts; None: it has an effect."""
        ...

    def build(self, *, schedule: Schedule, max_steps: int) -> Any:
        """The `LossMath` of a run of this length."""
        ...

    def description(self, *, schedule: Schedule, max_steps: int) -> list[str | Formula]:
        """Terms, weights and λ over the run, for `describe`."""
        ...

    def model_card(self) -> str:
        """The weights of its alignment terms, for users of published weights: "λ = 0.5 and w = 3"."""
        ...


# What schedules measure: train/cosine, and the cosine of the gradients of L_diff and L_align at the taps.
COSINE, CONFLICT = MEASURED = ("cosine", "gradient conflict")


class ScheduleMath(Protocol):
    """The shape of λ in one run, with its measurements as a state. It is the same on all ranks.

    `observe` is called once for every update, in order. A measurement takes effect `delay` updates later, so that
    `value` and `asks_teacher` are known when an update's batch is read: `delay` is larger than the number of batches
    that the reader prefetches (asserted there).
    """

    delay: int | None  # None: nothing depends on measurements, and `observe` is not called
    measures: str  # what `observe` gets, if it is called: one of `MEASURED`

    def measures_at(self, step: int) -> bool:
        """Whether this update is measured; asked for `CONFLICT` only, which is not computed otherwise."""
        ...

    def value(self, step: int) -> float:
        """The share of the peak, in [0, 1], at the update with this index. During the warm-up, which the loss applies,
        λ is the product of both."""
        ...

    def asks_teacher(self, step: int) -> bool:
        """Whether the teacher's tokens are read for this update: not if λ is 0 from here to the end."""
        ...

    def is_stopped(self, step: int) -> bool:
        """Whether this update is at or after `stop_step`. Validations there do not count for the best checkpoint."""
        ...

    def observe(self, step: int, value: Tensor | None) -> None:
        """Records what an update measured over all ranks, a scalar on the device, without synchronising. None if there
        was no alignment, or the update was not to be measured. NaN: it is not defined, as the conflict of two gradients
        of which one is 0."""
        ...

    def logged(self) -> Mapping[str, float]:
        """Its measurements by name, for a logging step. Synchronises with the device."""
        ...

    def state(self, step: int) -> dict[str, Any]:
        """Its state after this number of updates, as JSON, for a checkpoint. Synchronises with the device."""
        ...

    def load(self, step: int, state: dict[str, Any]) -> None:
        """Restores the state from the checkpoint after this number of updates."""
        ...


class Schedule(Protocol):
    """The shape of λ after its warm-up (urepa/method/schedules/). The peak is `loss.lambda_max`, the linear warm-up
    `loss.warmup_steps`. `urepa.method.schedules.shape_math` has common base classes: a shape defines `factor` and
    `description`, a decay defines `factor` and `words`."""

    def check(self) -> None:
        """Raises UserError if settings that are each in their range do not fit together."""
        ...

    def check_length(self, *, warmup_steps: int, max_steps: int) -> None:
        """Raises UserError if a setting has no effect in a run of this length."""
        ...

    def share(self, step: int, *, warmup_steps: int, max_steps: int) -> float:
        """The share of the peak, in [0, 1], at the update with this index, as known before the run: if no measurement
        lowers it."""
        ...

    def teacher_steps(self, *, warmup_steps: int, max_steps: int) -> float:
        """The largest number of updates that use the teacher; inf: all."""
        ...

    def may_stop(self, *, warmup_steps: int, max_steps: int) -> bool:
        """Whether there may be updates that do not use the teacher."""
        ...

    def build(self, *, warmup_steps: int, max_steps: int) -> Any:
        """The `ScheduleMath` of a run."""
        ...

    def description(self) -> str:
        """λ after its warm-up, as a continuation of "λ rises to 0.5 and "; "" if it stays at its peak."""
        ...

    def formulas(self, *, peak: float, warmup_steps: int, max_steps: int) -> list[str | Formula]:
        """λ as formulas with their sentences; empty if the description is complete."""
        ...


class TeacherNetwork(Protocol):
    """A frozen encoder with its preprocessing. Everything but its weights is known before they are read."""

    grid: tuple[int, int]  # rows and columns of its tokens
    width: int  # width of a token
    image_size: int  # side of its input image in pixels

    @property
    def is_local(self) -> bool:
        """Whether its weights are stored locally."""
        ...

    def manifest(self) -> dict[str, Any]:
        """The properties on which its tokens depend, as plain values: `Teacher.stored_as` and more."""
        ...

    def weights_sha256(self) -> str:
        """Digest of its weights; "none" if it has none."""
        ...

    def tokens(self, images_B3HW: Tensor) -> Tokens:
        """Maps RGB in [0,1] of any size, resized to a square, to tokens [B,N,D] on `grid`, without gradients: of
        unit length, unless the manifest has `unit_length` False."""
        ...

    def build_without_weights(self) -> Any:
        """The network from its architecture alone, to count costs; `tokens` then uses it."""
        ...


class RectangleTeacher(Protocol):
    """Additional members of a `TeacherNetwork` and its declaration that support images that are not square. A teacher
    without `grid_at` only supports squares (see `urepa.models.teachers.rectangle_sizes.grid_for`).

    If no grid is given, `tokens` and `manifest` are those of a square image.
    """

    def grid_at(self, shape: Sequence[int], side: int) -> tuple[int, int]:
        """Rows and columns of tokens for an image of `shape`, if a square one of side `side` has `grid`: a token covers
        the same number of pixels. Any unit of length is allowed, such as latent pixels. Both the network and the
        declaration have it."""
        ...

    def manifest(self, grid: tuple[int, int] | None = None) -> dict[str, Any]:
        """The properties on which tokens on this grid depend. Only the network has it, as `tokens`."""
        ...

    def tokens(self, images_B3HW: Tensor, grid: tuple[int, int] | None = None) -> Tokens:
        """Tokens of images resized to the proportions of this grid; a token covers the same area as on a square."""
        ...


class Teacher(Protocol):
    """One encoder, or several at once (urepa/models/teachers/). Members have what is defined for a single one only."""

    def members(self) -> Mapping[str, OneTeacher]:
        """Itself under the name `ALONE`, or several teachers by name."""
        ...

    def check(self) -> None:
        """Raises UserError if its settings do not fit together."""
        ...

    def hub_files(self) -> dict[str, list[str]]:
        """The files for `prefetch`: patterns by the name of a hub repository with its revision."""
        ...

    def build(self) -> Any:
        """A `TeacherNetwork`, which reads its weights when they are needed; for several teachers all of them."""
        ...

    def description(self) -> str:
        """Network, preprocessing and tokens for `describe`, in whole sentences."""
        ...


class OneTeacher(Teacher, Protocol):
    """One encoder."""

    grid: list[int]  # rows and columns of its tokens

    def check_files(self) -> None:
        """Raises UserError if a local file with its weights is missing."""
        ...

    def stored_as(self) -> dict[str, Any]:
        """The properties that name its token store on a small track: `model`, `image_size` and, if relevant,
        `positions`."""
        ...
