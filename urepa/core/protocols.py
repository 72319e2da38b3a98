"""What a part of each kind declares of itself, one commented class for each kind.

A declaration is a dataclass in a file of its own, in the folder of its kind. Its fields are the keys of its config, and
`_target_` is its own dotted name. It loads without torch: `build` imports the network or the mathematics. Backbones and
LoRA are in `urepa.core.backbone_protocols`. What two settings, or two parts of a kind, measure differently is said in
the words of `urepa.core.comparability`.
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
    `loss.grid` says otherwise. Heads run in fp32 also under bf16.

    The grids of tap and teacher may be others at every step. Where the tap's tokens have a mask, the tokens that are
    made of masked ones alone or in part are masked too."""

    def forward(self, tapped: Tokens, t_B: Tensor, grid: tuple[int, int]) -> Tokens: ...


class Head(Protocol):
    """From a tapped state to the teacher's token space (urepa/method/heads/)."""

    # Whether it takes a tap of any grid to another. One that does not is refused where it is asked to.
    resizes: ClassVar[bool]

    def check(self) -> None:
        """UserError where settings that are each in their range do not go together."""
        ...

    def build(self, *, in_width: int, out_width: int) -> nn.Module:
        """The network (`HeadNetwork`) for one tap and one teacher, its weights drawn from torch's generator.

        Args:
            in_width, out_width: D of the tap and E of the teacher.
        """
        ...

    def description(self) -> str:
        """Its layers as `describe` writes them, after "A head of its own maps each tap to the teacher's space: "."""
        ...


class Objective(Protocol):
    """How x0 is noised and what the backbone must predict (urepa/method/objectives/)."""

    # What the scheduler of a diffusers pipeline is told to take the prediction for; "flow": there is no such scheduler.
    prediction_type: ClassVar[str]
    # The attributes that say what the config of a diffusers scheduler says, by its keys: beta_start, beta_end,
    # beta_schedule and num_train_timesteps; {}: there is no such scheduler.
    scheduler: ClassVar[Mapping[str, str]]
    # Settings of the training alone: published weights are sampled alike whatever they are.
    training_only: ClassVar[tuple[str, ...]]
    # Whether its samplers take guidance at some times only.
    has_intervals: ClassVar[bool]

    @property
    def most_steps(self) -> float:
        """In how many steps a sampler of it can go from noise to data at most; inf: any number."""
        ...

    @property
    def times(self) -> str:
        """Which times it has, for an error message: "times lie in [0, 1]"."""
        ...

    def check(self) -> None:
        """UserError where settings that are each in their range do not go together."""
        ...

    def has_time(self, t: float) -> bool:
        """Is this one of its times?"""
        ...

    def time_at(self, fraction: float) -> float:
        """The time at a share, from 0 to 1, of the way from data to noise: `${time_at:0.5}` in conf/."""
        ...

    def build(self) -> Any:
        """The mathematics (`urepa.method.objectives.objective_math.ObjectiveMath`)."""
        ...

    def description(self) -> list[str | Formula]:
        """What is predicted, of what, and at which times, as `describe` writes it."""
        ...

    def model_card(self) -> str:
        """What is predicted, for users of published weights, as Markdown."""
        ...


class LossMath(Protocol):
    """The terms of a step: called with the diffusion term of each row [R], what the model returned, the batch, the step
    (the index of the update), what gathers [B,D] over the ranks to [G,D] with gradient, and the weights [B] of the
    samples' alignment by their times; gives `urepa.method.training_step.Terms`.

    A loss with taps also has what validation needs of it: `manifold_weight`, `teachers` (weights by name),
    `spatial_norm` and `targets(tokens)`, a teacher's tokens as the student's are compared with them. With `grid`, as
    `loss.grid`, its declaration and it say on which grid that is (`urepa.method.alignment_grids`); a loss without it
    compares on the teacher's. Targets are resized to it last.
    """

    taps: Mapping[str, float]
    lambda_max: float
    diffusion_fraction: float  # 0: nothing after the deepest tap trains
    time_power: float  # of a sample's weight by its time
    schedule: ScheduleMath  # of this run, with its state

    def lam(self, step: int) -> float:
        """λ of the update with this index."""
        ...

    def is_at_peak(self, step: int) -> bool:
        """Does a validation here count for the best checkpoint: λ's warm-up is over, and nothing has cut it off?"""
        ...

    def is_spike(self, terms: Any, step: int) -> Tensor | None:
        """Is a term far above what it should be by now? A boolean scalar; None: nobody looks."""
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
    """What a step is trained on beside the objective's target (urepa/method/losses/)."""

    # Columns of a comparison for its own terms. Total, diffusion loss and x0 error are columns of every loss.
    metrics: ClassVar[tuple[Metric, ...]]

    @property
    def taps(self) -> Mapping[str, float]:
        """The aligned taps and their weights; without one there is neither teacher nor head."""
        ...

    @property
    def lambda_max(self) -> float:
        """λ after its warm-up, by which the best checkpoint is chosen."""
        ...

    @property
    def diffusion_fraction(self) -> float:
        """The share of samples with a diffusion term."""
        ...

    def check(self) -> None:
        """UserError where settings that are each in their range do not go together."""
        ...

    def check_teachers(self, names: Collection[str]) -> None:
        """UserError where its settings do not fit the names of several teachers; without names there is one."""
        ...

    def check_layout(self, smallest_group: int, accumulation: int) -> None:
        """UserError where a term cannot be computed: `smallest_group` are the samples in the smaller of a training and
        a validation batch, `accumulation` the micro-batches of an update."""
        ...

    def check_schedule(self, schedule: Schedule, max_steps: int) -> None:
        """UserError where the schedule does not go with it, or a setting has no effect in a run of so many updates."""
        ...

    def idle_keys(self) -> Mapping[str, str | None]:
        """Keys, groups or patterns of keys that have no effect with it, each with the reason as it follows "has no
        effect with": giving one is a mistake. The first that fits a key counts; with None it has an effect."""
        ...

    def build(self, *, schedule: Schedule, max_steps: int) -> Any:
        """The `LossMath` of a run of so many updates."""
        ...

    def description(self, *, schedule: Schedule, max_steps: int) -> list[str | Formula]:
        """Terms, weights and λ over the run, as `describe` writes them."""
        ...

    def model_card(self) -> str:
        """The weights of its alignment terms, for users of published weights: "λ = 0.5 and w = 3"."""
        ...


class ScheduleMath(Protocol):
    """The shape of λ in one run, with what it has measured there. The same on all ranks.

    `observe` is called once for every update, in order. What an update measured acts `delay` updates later, so that
    `value` and `asks_teacher` are known for an update when its batch is read: `delay` is more than the reader reads
    ahead (asserted there).
    """

    delay: int | None  # None: nothing depends on what is measured, and `observe` is not called

    def value(self, step: int) -> float:
        """The share of the peak, in [0, 1], at the update with this index. During the warm-up, which is the loss's, it
        is multiplied by both."""
        ...

    def asks_teacher(self, step: int) -> bool:
        """Are the teacher's tokens read for this update? Not where λ is 0 from it on to the end."""
        ...

    def is_stopped(self, step: int) -> bool:
        """Is this update at or after `stop_step`? Validations there do not count for the best checkpoint."""
        ...

    def observe(self, step: int, similarity: Tensor | None) -> None:
        """Takes the mean similarity of an update over all ranks, a scalar on the device, which is not waited for; None
        where the teacher was not asked."""
        ...

    def logged(self) -> Mapping[str, float]:
        """What it has measured, by name, for a logging step; waits for the device."""
        ...

    def state(self, step: int) -> dict[str, Any]:
        """What a checkpoint after so many updates has of it, as JSON; waits for the device."""
        ...

    def load(self, step: int, state: dict[str, Any]) -> None:
        """From the checkpoint after so many updates."""
        ...


class Schedule(Protocol):
    """The shape of λ after its warm-up (urepa/method/schedules/). The peak is `loss.lambda_max`, the linear warm-up
    `loss.warmup_steps`. `urepa.method.schedules.shape_math` has what most share: a shape gives `factor` and
    `description`, a decay `factor` and `words`."""

    def check(self) -> None:
        """UserError where settings that are each in their range do not go together."""
        ...

    def check_length(self, *, warmup_steps: int, max_steps: int) -> None:
        """UserError where a setting has no effect in a run of so many updates."""
        ...

    def share(self, step: int, *, warmup_steps: int, max_steps: int) -> float:
        """The share of the peak, in [0, 1], at the update with this index, as far as it is known before the run: where
        nothing that is measured lowers it."""
        ...

    def teacher_steps(self, *, warmup_steps: int, max_steps: int) -> float:
        """How many updates ask the teacher at most; inf: all."""
        ...

    def may_stop(self, *, warmup_steps: int, max_steps: int) -> bool:
        """May there be updates that do not ask the teacher?"""
        ...

    def build(self, *, warmup_steps: int, max_steps: int) -> Any:
        """The `ScheduleMath` of a run."""
        ...

    def description(self) -> str:
        """What λ does after its warm-up, following "λ rises to 0.5 and "; empty where it stays at its peak."""
        ...

    def formulas(self, *, peak: float, warmup_steps: int, max_steps: int) -> list[str | Formula]:
        """The same as formulas with their sentences; empty where the description says all."""
        ...


class TeacherNetwork(Protocol):
    """A frozen encoder with its preprocessing. Everything but its weights is known before they are read."""

    grid: tuple[int, int]  # rows and columns of its tokens
    width: int  # of a token
    image_size: int  # side of the image that it sees, pixels

    @property
    def is_local(self) -> bool:
        """Do its weights lie on this disk?"""
        ...

    def manifest(self) -> dict[str, Any]:
        """What its tokens depend on, as plain values: `Teacher.stored_as` and more."""
        ...

    def weights_sha256(self) -> str:
        """Digest of its weights; "none" where it has none."""
        ...

    def tokens(self, images_B3HW: Tensor) -> Tokens:
        """RGB in [0,1] of any size, resized to a square, to tokens [B,N,D] of unit length on `grid`, without
        gradients."""
        ...

    def build_without_weights(self) -> Any:
        """The network from its architecture alone, to count costs; `tokens` then goes through it."""
        ...


class RectangleTeacher(Protocol):
    """What a `TeacherNetwork` and its declaration have beside where they answer for images that are not square too. One
    without `grid_at` is for squares (`urepa.models.teachers.rectangle_sizes.grid_for` asks).

    Without a grid, `tokens` and `manifest` are those of a square image.
    """

    def grid_at(self, shape: Sequence[int], side: int) -> tuple[int, int]:
        """Rows and columns of tokens for an image of `shape`, where a square one of `side` has `grid`: tokens see as
        many pixels. Any unit of length will do, pixels of a latent too. Both the network and the declaration have it.
        """
        ...

    def manifest(self, grid: tuple[int, int] | None = None) -> dict[str, Any]:
        """What tokens on this grid depend on. Of the network alone, as `tokens`."""
        ...

    def tokens(self, images_B3HW: Tensor, grid: tuple[int, int] | None = None) -> Tokens:
        """The same for images that are resized to the proportions of this grid, with tokens as large as on a square."""
        ...


class Teacher(Protocol):
    """One encoder, or several at once (urepa/models/teachers/). What only one has, its members are asked for."""

    def members(self) -> Mapping[str, OneTeacher]:
        """Itself as `ALONE`, or several by their names."""
        ...

    def check(self) -> None:
        """UserError where its settings do not go together."""
        ...

    def hub_files(self) -> dict[str, list[str]]:
        """What `prefetch` fetches: patterns of files by the name of a repository on the hub, with its revision."""
        ...

    def build(self) -> Any:
        """A `TeacherNetwork`, whose weights are read when they are needed; of several all."""
        ...

    def description(self) -> str:
        """Network, preprocessing and tokens as `describe` writes them, in whole sentences."""
        ...


class OneTeacher(Teacher, Protocol):
    """One encoder."""

    grid: list[int]  # rows and columns of its tokens

    def check_files(self) -> None:
        """UserError where a local file that its weights come from is not there."""
        ...

    def stored_as(self) -> dict[str, Any]:
        """What names its store of tokens on a small track: `model`, `image_size` and, where they count, `positions`."""
        ...
