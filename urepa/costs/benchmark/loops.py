"""The loops that are timed. Each call makes one update; some are this project's with one part of the description's.

Shapes: B batch, CHW latent, N tokens, D width.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from copy import copy, deepcopy
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from urepa.config.declared import declaration_of
from urepa.config.parts import target_of
from urepa.core.backbone_protocols import Backbone
from urepa.core.conditions import Condition
from urepa.core.teacher_names import ALONE
from urepa.core.types import Batch, Denoised, Tokens
from urepa.costs.benchmark.description_loop import DocumentedLoop, Store, forever, loader, update_ema
from urepa.costs.benchmark.online_teacher import OnlineTeacher, RandomImages
from urepa.costs.benchmark.plain_loop import PlainLoop
from urepa.costs.benchmark.random_data import SyntheticTrack, largest_bucket, settings_like
from urepa.method.schedules.constant import Constant
from urepa.method.training_step import AlignedModel
from urepa.models import speed_switches
from urepa.runs.trackers.no_tracking import NoShipper
from urepa.training import assembly, trainer_assembly

FOREVER = 10**9  # steps
TRACK = "urepa.costs.benchmark.random_data.SyntheticTrack"


@dataclass
class Loop:
    """One way to train. `update` makes one step on a batch from `data`; both run inside the context `inside`."""

    name: str
    data: Iterator[Any]
    update: Callable[[Any], None]
    inside: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    waited: float = 0.0

    def step(self) -> None:
        """Makes one step, and adds the seconds for which it waited for data to `waited`."""
        begin = time.perf_counter()
        batch = next(self.data)
        self.waited += time.perf_counter() - begin
        self.update(batch)


class HookedUNet(nn.Module):
    """The backbone without its stages: always diffusers' whole forward pass, with hooks at the taps."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(
        self, x_t: Tensor, t_B: Tensor, condition: Condition, taps: tuple[str, ...] = (), rows_R: Tensor | None = None
    ) -> Denoised:
        unet, features = self.backbone.unet, {}
        blocks = {"enc_last": unet.down_blocks[-1], "mid": unet.mid_block, "dec_first": unet.up_blocks[0]}

        def hand_out(tap: str, module: nn.Module, inputs: Any, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            features[tap] = Tokens.from_map(hidden)
            passed_on = features[tap].to_map()
            if not isinstance(output, tuple):
                return passed_on
            return passed_on, tuple(passed_on if skip is hidden else skip for skip in output[1])

        handles = [blocks[tap].register_forward_hook(partial(hand_out, tap)) for tap in taps]
        prediction = unet(x_t, t_B, encoder_hidden_states=self.backbone.text_of(condition)).sample
        for handle in handles:
            handle.remove()
        return Denoised(prediction if rows_R is None else prediction[rows_R], features)


class DeepcopyEMA:
    """The description's EMA, in place of the trainer's."""

    def __init__(self, model: nn.Module, shadow: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self.shadow = shadow

    def update(self, bad: Tensor) -> None:
        """One update, of all parameters."""
        update_ema(self.shadow, self.model, self.decay)


# all timed steps use the teacher, whatever the schedule; the value of λ does not change their time
ALIGNED_THROUGHOUT = {"_target_": target_of(Constant)}


class BenchLoops:
    """The experiment's own trainer over random records in `place`, and loops around it. For a track with buckets the
    records have the shape of the largest one, whose name is `bucket`.

    The workers of the description's loader start before the model exists: a forked worker would keep a copy of every
    page that training changes later.
    """

    def __init__(self, config: dict[str, Any], place: Path, accelerator: Any) -> None:
        settings = config["bench"]
        config = config | {"schedule": ALIGNED_THROUGHOUT}
        self.place, self.accelerator = place, accelerator
        real, loss = assembly.build_part(config["data"]), assembly.build_loss(config)
        self.teacher = teacher = assembly.build_part(config["teacher"]) if loss.taps else None
        batch_size = config["trainer"]["batch_size"]
        records = max(settings["batches"] * batch_size, config["trainer"]["validation_group"])
        self.bucket = largest_bucket(real)[0] if len(real.latent_shapes) > 1 else ""
        data = settings_like(real, place, records, teacher)
        self.track = SyntheticTrack(**data)
        self.track.write(teacher)
        compares = teacher is not None and (settings["against"] == "documented" or settings["parts"])
        self.items = self._description_items(teacher, batch_size, settings["workers"]) if compares else iter(())
        without = {"evaluation": {}, "warm_start": {"checkpoint": None}}
        self.config = config | {"data": data | {"_target_": TRACK}} | without
        backbone: Backbone = declaration_of(config["backbone"])
        self.config["backbone"] = config["backbone"] | backbone.write_stand_ins(place, real.num_classes)
        shipper = NoShipper()
        self.trainer, _ = trainer_assembly.build(self.config, place, accelerator, shipper)
        self.step_index = 0

    def _description_items(self, teacher: Any, batch_size: int, workers: int) -> Iterator[Any]:
        """The items of the description's loader, without end."""
        ids, grid = [s.sample_id for s in self.track.samples], self.track.grid_of(teacher)
        stores: list[Store] = [
            (self.track.latents, ids, self.track.latent_shape),
            (self.track.tokens, ids, (grid[0] * grid[1], teacher.width)),
        ]
        items = forever(loader(stores, batch_size, workers, shuffle=True))
        return itertools.chain([next(items)], items)

    def build_model(self) -> AlignedModel:
        """A second copy of the experiment's model, in fp32 and in PyTorch's default memory format."""
        loss = assembly.build_loss(self.config)
        teacher = assembly.build_part(self.config["teacher"]) if loss.taps else None
        model, _ = assembly.build_model(self.config, self.track, teacher, loss)
        return model.to(self.accelerator.device)

    @cached_property
    def shadow(self) -> nn.Module:
        """A deepcopy of the model, as the description's EMA."""
        return deepcopy(self.trainer.model).requires_grad_(False)

    def training_loop(self) -> Loop:
        """The trainer's update on its reader's batches."""
        return Loop("urepa", self._own_batches(), self._update)

    def loops_without_parts(self) -> list[Loop]:
        """The training loop with one part at a time replaced by the description's."""
        trainer, model = self.trainer, self.trainer.model
        loops = [
            replace(
                self.training_loop(),
                name="without stages",
                inside=lambda: replace_attribute(model, "backbone", HookedUNet),
            )
        ]
        if trainer.settings.channels_last:
            loops.append(replace(self.training_loop(), name="without channels_last", inside=lambda: use_nchw(model)))
        ema = DeepcopyEMA(model, self.shadow, trainer.ema.decay)
        loops.append(
            replace(
                self.training_loop(),
                name="deepcopy EMA",
                inside=lambda: replace_attribute(trainer, "ema", lambda _: ema),
            )
        )
        if model.heads:
            batches = (self._batch(item) for item in self.items)
            loops.append(Loop("documented reader", batches, self._update))
        return loops

    def description_loop(self) -> Loop:
        """The description's loop over a model in fp32: the trainer's own if it is in fp32 (two copies of SD-1.5 with
        their EMA take 14 GB)."""
        model, shadow = self.trainer.model, self.shadow
        if self.trainer.settings.frozen != "fp32":
            model = self.build_model()
            shadow = deepcopy(model).requires_grad_(False)
        documented = DocumentedLoop(self.config, model, shadow, self.accelerator.device)

        def update(item: tuple[Tensor, Tensor, Tensor]) -> None:
            index_B, x0, teacher_BND = item
            documented.update(x0, teacher_BND, index_B % self.track.num_classes)

        return Loop("documented", self.items, update, lambda: use_nchw(model))

    def online_loop(self) -> Loop:
        """The same updates with an online teacher: images are read instead of tokens."""
        asks = OnlineTeacher(self.teacher, self.accelerator.device, self.accelerator.autocast)
        reader = copy(self.trainer.reader)
        side = asks.teacher.image_size
        images: Any = RandomImages(self.track.samples, side)
        (bucket,) = reader.cache.buckets
        reader.cache = replace(bucket, tokens={ALONE: images}, grids={ALONE: (side, side)})

        def update(batches: list[Batch]) -> None:
            self._update(asks.add_tokens(batches))

        return Loop("online teacher", reader.stream(0, FOREVER), update, asks.on_device)

    def plain_loop(self) -> Loop:
        """The straightforward training loop, over the same batches."""
        trainer = self.trainer
        plain = PlainLoop(
            trainer.model,
            trainer.objective,
            trainer.loss,
            trainer.settings,
            self.accelerator.device,
            self.accelerator.autocast,
        )
        return Loop("plain", self._own_batches(), plain.update)

    def _update(self, batches: list[Batch]) -> None:
        self.trainer.update(self.step_index, batches, with_tap_gradients=False)
        self.step_index += 1

    def _own_batches(self) -> Iterator[list[Batch]]:
        yield from self.trainer.reader.stream(0, FOREVER)

    def _batch(self, item: tuple[Tensor, Tensor, Tensor]) -> list[Batch]:
        """An item of the description's loader as the trainer's batch; noise and timesteps are drawn on the device."""
        index_B, x0, teacher_BND = item
        samples = [self.track.samples[int(i)] for i in index_B]
        device = self.accelerator.device
        fraction = self.trainer.loss.diffusion_fraction
        rows_R = None if fraction == 1 else torch.arange(round(fraction * len(x0)))
        batch = Batch(
            ids=[s.sample_id for s in samples],
            x0=x0.float(),
            noise=torch.randn(x0.shape, device=device),
            t_B=torch.randint(self.trainer.objective.timesteps, (len(x0),), device=device),
            condition=self.track.conditions.of_samples(samples),
            teachers={ALONE: Tokens(teacher_BND, self.trainer.reader.cache.buckets[0].grids[ALONE])},
            rows_R=rows_R,
        )
        return [batch]


@contextlib.contextmanager
def replace_attribute(owner: Any, name: str, other: Callable[[Any], Any]) -> Iterator[None]:
    """Inside, `owner.name` is replaced by `other(owner.name)`."""
    own = getattr(owner, name)
    setattr(owner, name, other(own))
    try:
        yield
    finally:
        setattr(owner, name, own)


@contextlib.contextmanager
def use_nchw(model: AlignedModel) -> Iterator[None]:
    """Inside, the backbone is in PyTorch's default memory format."""
    own = {p: p.is_contiguous() for p in model.backbone.parameters()}
    model.backbone.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    try:
        yield
    finally:
        if not all(own.values()):
            speed_switches.channels_last(model.backbone)
