"""The training loop: update, EMA, log, validate, checkpoint.

`step` counts completed updates; λ and the learning rate use the index before the update.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from urepa.core import ema_initial_weights, progress
from urepa.core.collectives import all_objects, any_rank, gather_with_gradient, mean_over_ranks, on_main, sum_over_ranks
from urepa.core.errors import UserError
from urepa.core.protocols import CONFLICT
from urepa.core.random_draws import digest64
from urepa.core.run_protocols import Optimizer, StopRule
from urepa.core.shards import gathered
from urepa.core.signals import StopSignals
from urepa.core.types import Batch
from urepa.data.reader import TrainingReader
from urepa.evaluation.in_training import During
from urepa.evaluation.validation_loss import Validation
from urepa.method.training_step import Aligned, AlignedModel, Terms, step_terms, tap_gradients
from urepa.models.weight_files import trainable
from urepa.runs import checkpoint
from urepa.runs.metrics import MetricsLog, values_by_step
from urepa.training import slow_alignment
from urepa.training.ema import EMA
from urepa.training.gpu_sensors import GpuSensors
from urepa.training.gradient_cosine import cosine_of_sums
from urepa.training.micro_batches import merge_terms
from urepa.training.non_finite_guard import Guard, non_finite, some_of
from urepa.training.observed import Observed
from urepa.training.optimizer import clip_by_global_norm, step_unless
from urepa.training.sharding import Shards
from urepa.training.spike_records import SpikeRecords
from urepa.training.trainer_settings import Settings, threads_warning


@dataclass
class Update:
    """Values of one update that stay on the device until they are logged."""

    terms: Terms
    norms: dict[str, Tensor]
    tap_sums: dict[str, Tensor]


@dataclass
class Trainer:
    """Everything that the loop needs, built by `urepa.training.trainer_assembly.build`."""

    settings: Settings
    accelerator: Accelerator
    model: AlignedModel  # unwrapped, for state and, unless it is sharded, for evaluation
    prepared: torch.nn.Module  # the same with DDP and autocast, for training
    objective: Any
    loss: Any
    declared_optimizer: Optimizer
    optimizer: torch.optim.Optimizer
    ema: EMA
    reader: TrainingReader
    validation: Validation
    during: During
    looking: During
    stop_rule: StopRule
    guard: Guard
    spikes: SpikeRecords
    observed: Observed
    metrics: MetricsLog
    sensors: GpuSensors
    shipper: Any
    folder: Path
    config_yaml: str
    seed: int
    shards: Shards | None = None
    best: dict[str, float] | None = None
    seconds: float = 0.0  # spent in the loop, over all processes that trained this run
    waited: float = 0.0  # seconds waiting for data since the last logging step
    logged: tuple[int, float] = (0, 0.0)  # the last logging step and its time
    ended_early: str | None = None  # why the stop rule ended the run
    judged: bool = False  # whether this process has judged the alignment's progress

    # --- the loop ---------------------------------------------------------------------------------------

    def fit(self, step: int) -> int:
        """Trains from completed step `step` to max_steps, or until the stop rule ends the run; returns the last step.
        Raises Stopped after a signal, with everything saved, and UserError if a value or a tensor to be saved is not
        finite, or if most updates were skipped."""
        s = self.settings
        if step and self.ends_early(step):  # it was killed between its last checkpoint and its summary
            self.guard.require_updates(step)
            return step
        with StopSignals() as signals, self._progress(step) as bar:
            self.logged = (step, time.perf_counter())
            with contextlib.closing(self.reader.stream(step, s.max_steps)) as stream:
                for batches in self._timed_batches(stream):
                    logs = step == 0 or (step + 1) % s.log_every == 0 or step + 1 == s.max_steps
                    update = self.update(step, batches, with_tap_gradients=logs)
                    step += 1
                    row: dict[str, Any] = {}
                    if logs:
                        row |= self.log(step, update)
                        bar.set_postfix_str(progress.losses(row))
                    improved, validates = False, step % s.validate_every == 0 or step == s.max_steps
                    if validates:
                        row |= self.validate(step)
                        self.require_defined(step, row)
                        improved = self.is_best(step, self.validation.total_at_peak)
                    for turns in (self.during, self.looking):
                        if turns.is_due(step, s.max_steps) and not signals.received_on_any_rank():
                            row |= self.take_turn(turns, step)
                    if row and self.accelerator.is_main_process:
                        self.metrics.append({"step": step} | row)
                        self.shipper.wake()
                        self.judge_alignment(step)
                        for text in self.observed.remarks(step, row, self.metrics.path):
                            self.accelerator.print(f"step {step}: {text}")
                    bar.update(1)
                    ends = step == s.max_steps or (validates and self.ends_early(step))
                    stop = signals.received_on_any_rank()
                    if improved or stop or step % s.checkpoint_every == 0 or ends:
                        self.save(step)
                    if stop:
                        bar.close()
                        self.accelerator.print(f"stopped at step {step}; the same command goes on from there")
                        signals.obey(stop)
                    if ends:
                        break
        self.guard.require_updates(step)
        return step

    def update(self, step: int, batches: list[Batch], with_tap_gradients: bool) -> Update:
        """Does the update with index `step` on this rank's micro-batches. Does not synchronise with the device."""
        self.prepared.train()
        # only dropout inside the model uses torch's generator; it is seeded by the step
        torch.manual_seed(digest64("forward", self.seed, step, self.reader.layout.rank) >> 1)
        done: list[Terms] = []
        measured: list[dict[str, Tensor]] = []
        schedule = self.loss.schedule
        of_conflict = schedule.measures == CONFLICT
        measures_conflict = of_conflict and schedule.measures_at(step)
        self.observed.begin(batches, with_tap_gradients)
        for i, batch in enumerate(batches):
            last = i == len(batches) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.prepared):
                terms, output = self.forward(batch.to(self.accelerator.device), step)
                if measures_conflict or (with_tap_gradients and last):
                    measured.append(tap_gradients(terms, output))
                self.accelerator.backward(terms.total / len(batches))
            done.append(terms)
            self.observed.note(output)
        places = self.observed.end()
        norms = clip_by_global_norm(self.optimizer, self.settings.clip_norm)
        ids, spike = [i for b in batches for i in b.ids], self.loss.is_spike(done[-1], step)
        bad = self.guard.judge(step, ids, done, norms["all"], spike, places)
        terms = merge_terms(done)
        if of_conflict:
            schedule.observe(step, cosine_of_sums(measured) if measures_conflict else None)
        elif schedule.delay is not None:
            similarity = terms.means().get("cosine")
            schedule.observe(step, None if similarity is None else mean_over_ranks(similarity.float()))
        self.declared_optimizer.set_lr(self.optimizer, step, self.settings.max_steps)
        if spike is not None:
            rates = {group["name"]: group["lr"] for group in self.optimizer.param_groups}
            known = {"lambda": self.loss.lam(step), "lr": rates}
            self.spikes.note(step, ids, terms.means(), norms["all"], known, any_rank(spike))
        step_unless(self.optimizer, bad)
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update(bad)
        return Update(terms, norms, measured[-1] if with_tap_gradients else {})

    def forward(self, batch: Batch, step: int) -> tuple[Terms, Aligned]:
        """Runs the prepared model; the unwrapped one would give ranks different gradients."""
        return step_terms(self.prepared, self.objective, self.loss, batch, step, gather_with_gradient)

    # --- logging ----------------------------------------------------------------------------------------

    def log(self, step: int, update: Update) -> dict[str, Any]:
        """The row of a logging step. Only this method synchronises with the device."""
        means = update.terms.means()
        values = mean_over_ranks(torch.stack([v.float() for v in means.values()])).tolist()
        row: dict[str, Any] = {f"train/{k}": v for k, v in zip(means, values, strict=True)}
        row["train/lambda"] = self.loss.lam(step - 1)
        row |= {f"train/{k}": v for k, v in self.loss.schedule.logged().items()}
        row["lr"] = max(group["lr"] for group in self.optimizer.param_groups)
        for name, norm in update.norms.items():
            row["grad_norm" if name == "all" else f"grad_norm/{name}"] = norm.item()
        row |= self.observed.row()
        world = self.reader.layout.world
        for tap, sums in update.tap_sums.items():
            d, a, inner = sum_over_ranks(sums).tolist()
            row[f"tap/{tap}/grad_diffusion"] = d**0.5 / world
            row[f"tap/{tap}/grad_alignment"] = a**0.5 / world
            row[f"tap/{tap}/grad_cosine"] = inner / (d * a) ** 0.5 if d * a > 0 else 0.0
        self.spikes.write(self.accelerator.is_main_process)  # before the guard, which may stop the run
        row |= self.guard.read(step, self.accelerator.is_main_process)
        if row["guard/manifold_spikes"]:
            row["guard/spike_episodes"] = self.spikes.episodes.item()
        row[ema_initial_weights.SHARE] = self.ema.initial_share()
        last, then = self.logged
        elapsed = time.perf_counter() - then
        row |= self.sensors.read()
        row["images_per_s"] = (step - last) * self.settings.batch_size / elapsed
        row["data_wait_share"] = self.waited / elapsed
        self.seconds += elapsed
        self.waited, self.logged = 0.0, (step, time.perf_counter())
        return row

    def validate(self, step: int) -> dict[str, float]:
        """Validates the EMA weights on the validation split."""
        with self.gathered(everywhere=True), self.averaged() as model, self.accelerator.autocast():
            row = self.validation(model, step)
        worse = self.loss.diffusion_fraction and row["val/diffusion"] > row["floor/zero_predictor"]
        if worse and self.loss_is_warm(step):
            share = self.ema.initial_share()
            lags = f"the EMA weights still hold {100 * share:.0f} % of the initial ones"
            advice = lags if share > ema_initial_weights.LAGGING else "check objective, learning rate and data"
            self.accelerator.print(
                f"step {step}: the model's diffusion loss {row['val/diffusion']:.3f} is worse than "
                f"predicting zero ({row['floor/zero_predictor']:.3f}); {advice}"
            )
        return row

    def judge_alignment(self, step: int) -> None:
        """Prints a remark, once in a run, if the alignment did not improve at its beginning."""
        if self.judged or not slow_alignment.can_judge(step, self.loss):
            return
        self.judged = True
        rates = [group["lr"] for group in self.optimizer.param_groups if group["name"] == "head"]
        if text := slow_alignment.remark(self.metrics.path, step, self.loss, rates):
            self.accelerator.print(f"step {step}: {text}")

    def require_defined(self, step: int, row: dict[str, Any]) -> None:
        """Raises UserError if a validation value is not finite. Its row stays in the file until the run resumes."""
        odd = [key for key, value in row.items() if key.startswith(("val/", "floor/")) and not math.isfinite(value)]
        if odd:
            if self.accelerator.is_main_process:
                self.metrics.append({"step": step} | row)
                self.shipper.wake()
            self.guard.report(self.accelerator.is_main_process)
            raise UserError(
                f"stopped at step {step}: values of the validation are not finite ({some_of(odd)}), so this run is not "
                "finished; checkpoints of before are kept. A lower optimizer.lr or loss.lambda_max starts another run"
            )

    def take_turn(self, turns: During, step: int) -> dict[str, Any]:
        """Runs the evaluations of this step, or makes its pictures. Their time is not counted as training time."""
        begin = time.perf_counter()
        last, then = self.logged
        with self.gathered():
            row = turns.row(step, self.seconds + begin - then, self.accelerator.is_main_process)
        self.logged = (last, then + time.perf_counter() - begin)
        return row

    def gathered(self, everywhere: bool = False) -> contextlib.AbstractContextManager[None]:
        """Within the block `averaged` may be used, `everywhere` or on rank 0. All ranks enter together."""
        keep = everywhere or self.accelerator.is_main_process
        return contextlib.nullcontext() if self.shards is None else self.shards.filled(self.ema.shadow, keep)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[AlignedModel]:
        """Within the block, the model with the EMA weights; used in `gathered`."""
        with contextlib.nullcontext() if self.shards else self.ema.use_averages():
            yield self.shards.model if self.shards else self.model

    def loss_is_warm(self, step: int) -> bool:
        """Whether a tenth of the run is done, so that a model that is worse than predicting zero is warned of."""
        return step >= self.settings.max_steps / 10

    def is_best(self, step: int, total: float) -> bool:
        """Whether this is the lowest validation total at λ_max after the warm-up, for any λ of the schedule. Records
        it."""
        if not self.loss.is_at_peak(step) or not total < (self.best or {"total": torch.inf})["total"]:
            return False
        self.best = {"step": step, "total": total}
        return True

    def ends_early(self, step: int) -> bool:
        """Whether the stop rule ends the run after this validation, on all ranks alike."""
        if self.stop_rule.metric is None or step >= self.settings.max_steps:
            return False
        if (why := on_main(self.why_now)) is not None:
            self.ended_early = why
            self.accelerator.print(f"step {step}: the run ends here, by stop_when: {why}")
        return why is not None

    def why_now(self) -> str | None:
        """Why the stop rule ends the run, by the rows that are written; None if it goes on."""
        rule = self.stop_rule
        other = {} if rule.control is None else values_by_step(Path(rule.control) / self.metrics.path.name, rule.metric)
        return rule.why(values_by_step(self.metrics.path, rule.metric), other)

    # --- checkpoints ------------------------------------------------------------------------------------

    def save(self, step: int) -> None:
        """Rank 0 writes a checkpoint and removes old ones. All ranks wait, and all raise if it failed. Raises
        UserError, without a checkpoint, if a tensor in it is not finite."""
        self.guard.report(self.accelerator.is_main_process)
        self.spikes.write(self.accelerator.is_main_process)
        if odd := self.non_finite_tensors():
            raise UserError(
                f"stopped at step {step}: weights, their average or the optimizer's state are not finite "
                f"({some_of(odd)}), so this run is not finished; checkpoints of before are kept. A lower optimizer.lr "
                "starts another run"
            )

        tensors = gathered(self.tensors(), keep=self.accelerator.is_main_process)

        def write() -> None:
            state = {
                "best": self.best,
                "guard": self.guard.state(),
                "spikes": self.spikes.state(),
                "schedule": self.loss.schedule.state(step),
                "ema_updates": int(self.ema.updates),
                "metrics_rows": self.metrics.rows,
                "seconds": self.seconds,
                "evaluation_seconds": self.during.seconds,
                "last_evaluation_seconds": self.during.last,
                "look_seconds": [self.looking.seconds, self.looking.last],
                "threads": torch.get_num_threads(),
            }
            self.metrics.sync()
            target = self.folder / "checkpoints"
            checkpoint.save(target, step, tensors, state, self.config_yaml)
            checkpoint.prune(target, step, self.settings.keep_last, int(self.best["step"]) if self.best else None)

        on_main(write)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The tensors of a checkpoint by part and name, not copied."""
        parameters = trainable(self.model)
        optimizer = checkpoint.optimizer_tensors(self.optimizer, parameters)
        return {"weights": dict(parameters), "ema": self.ema.shadow, "optimizer": optimizer}

    def non_finite_tensors(self) -> list[str]:
        """The names of these tensors that are not finite, on any rank."""
        return max(all_objects(non_finite(self.tensors())), key=len)

    def restore(self, found: checkpoint.Checkpoint | None, finished_at: int | None) -> int:
        """Restores the state of a checkpoint (None: the initial state) and truncates metrics.jsonl to it. A run that
        was finished at that step keeps the row of its final evaluation, which was written after the checkpoint."""
        on_main(lambda: self._cut_back(found, finished_at))
        if found is None:
            return 0
        parameters = trainable(self.model)
        checkpoint.load_named(parameters, found.tensors("weights"), str(found.folder))
        checkpoint.load_named(self.ema.shadow, found.tensors("ema"), str(found.folder))
        checkpoint.load_optimizer(self.optimizer, parameters, found.tensors("optimizer"))
        if odd := self.non_finite_tensors():  # an earlier version saved such checkpoints
            raise UserError(
                f"{found.folder} holds weights or other tensors that are not finite ({some_of(odd)}); delete it, and "
                "the same command goes on from the checkpoint before it"
            )
        self.guard.load(found.state["guard"])
        self.spikes.load(found.state.get("spikes", {}))  # older checkpoints lack it
        self.loss.schedule.load(found.step, found.state.get("schedule", {}))  # older checkpoints lack it
        applied = found.step - int(found.state["guard"]["skipped"])  # older checkpoints do not count them
        self.ema.updates.fill_(found.state.get("ema_updates", applied))
        self.best, self.seconds = found.state["best"], found.state["seconds"]
        self.during.seconds = found.state.get("evaluation_seconds", 0.0)  # older checkpoints lack it
        self.during.last = found.state.get("last_evaluation_seconds", 0.0)
        self.looking.seconds, self.looking.last = found.state.get("look_seconds", (0.0, 0.0))
        if warning := threads_warning(found.state["threads"]):
            self.accelerator.print(warning)
        return found.step

    def _cut_back(self, found: checkpoint.Checkpoint | None, finished_at: int | None) -> None:
        """Truncates the files of rows to a checkpoint. Raises UserError if metrics.jsonl lacks rows of the
        checkpoint."""
        step, rows = (found.step, found.state["metrics_rows"]) if found else (0, 0)
        self.metrics.cut(rows, step, and_final=found is not None and step == finished_at)
        self.guard.cut(step)
        self.spikes.cut(step)

    # --- time -------------------------------------------------------------------------------------------

    def _progress(self, step: int) -> tqdm:
        options = {"initial": step, "disable": not self.accelerator.is_main_process}
        return progress.bar(total=self.settings.max_steps, desc="training", unit="step", **options)

    def _timed_batches(self, stream: Generator[list[Batch]]) -> Iterator[list[Batch]]:
        """Iterates over the stream and adds up the time that the loop waits."""
        begin = time.perf_counter()
        for batches in stream:
            self.waited += time.perf_counter() - begin
            yield batches
            begin = time.perf_counter()
