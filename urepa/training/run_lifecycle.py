"""One run from taking its folder to its summary: everything in `urepa.train` around the training loop."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import platform
import resource
import time
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from omegaconf import DictConfig, OmegaConf

from urepa.config.declared import declaration_of
from urepa.core.code_version import code_of, code_state, recorded_code
from urepa.core.collectives import on_main
from urepa.core.errors import NotEvaluated, UserError
from urepa.core.files import write_whole
from urepa.core.nested_dicts import flatten, move_paths
from urepa.core.run_protocols import Optimizer, Tracker
from urepa.core.track_protocols import Track
from urepa.data.stores.build_seconds import teacher_cache_seconds
from urepa.evaluation.context import Evaluated
from urepa.evaluation.encoder_weights import with_digests
from urepa.evaluation.plots import DRAWN, losses_png
from urepa.runs import checkpoint
from urepa.runs.curves import read_curves
from urepa.runs.environment import remove_accelerate_variables
from urepa.runs.identity import is_file_of_weights, is_identity
from urepa.runs.last_table import print_report
from urepa.runs.metrics import Rows, checkpoint_rows, is_final, last_values, storable
from urepa.runs.mlflow_run import end_tags
from urepa.runs.run_folder import (
    Names,
    RunFolder,
    extend_names,
    own_overrides,
    parse_overrides,
    stored_names,
    tags_of,
    to_plain,
)
from urepa.runs.summary import FILE as SUMMARY
from urepa.runs.summary import early_text, end_step, is_finished, read_summary
from urepa.runs.upgrades import SCHEMA, SCHEMA_TAG
from urepa.training import provenance, trainer_assembly, warm_start
from urepa.training.assembly import build_part, evaluate_ema, load_modules
from urepa.training.checks.inputs import check_opened_images
from urepa.training.first_lines import parameters_by_part, start_lines
from urepa.training.next_command import next_command
from urepa.training.sharding import check_sharding
from urepa.training.trainer import Trainer

PREDECESSOR = 300.0  # seconds that a requeued job waits for its previous process; other ranks wait too
PRECISIONS = {"fp32": "no", "bf16": "bf16"}
PACKAGES = ("torch", "diffusers", "accelerate", "peft", "transformers", "hydra-core", "mlflow", "numpy")


def accelerate_for(trainer: dict[str, Any]) -> Accelerator:
    """Sets the process's threads and cuDNN options and makes the Accelerator that conf/trainer specifies. Environment
    variables of accelerate and for TF32 (TORCH_ALLOW_TF32_CUBLAS_OVERRIDE) have no effect."""
    remove_accelerate_variables()
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.deterministic = trainer["deterministic"]
    torch.backends.cudnn.benchmark = not trainer["deterministic"]
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # otherwise accelerate treats each CPU rank as a run of its own
        mixed_precision=PRECISIONS[trainer["precision"]],
        # no layer learns a buffer, and SD-1.5's prompts would be broadcast at every step
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    assert accelerator.num_processes == int(os.environ.get("WORLD_SIZE", "1"))
    assert accelerator.gradient_accumulation_steps == 1, "the trainer accumulates by itself"
    if trainer["threads"] is not None:
        torch.set_num_threads(trainer["threads"])  # after accelerate, which sets the threads of CPU ranks
    return accelerator


class Session:
    """A run in this process. Hydra gives `folder` and `overrides`."""

    def __init__(self, config: DictConfig, folder: str, overrides: list[str], choices: dict[str, Any]) -> None:
        self.config = to_plain(config)
        self.config.pop("arm", None)  # `urepa.train` has checked it; it is not part of the run
        self.given = parse_overrides(overrides)
        self.folder = RunFolder(Path(folder))
        experiment, ablation = choices.get("experiment"), choices.get("ablation")
        self.names = Names(
            "quickstart" if experiment is None else str(experiment),
            "baseline" if ablation is None else str(ablation),
            tuple(own_overrides(overrides)),
        )
        self.extended_from: int | None = None

    def run(self) -> None:
        """Trains to the end, or raises an error with the reason. The process can then do the next run of a sweep."""
        with self._use_accelerator():
            finished, self.config = on_main(self._claim)
            if not finished:
                self._train()

    @contextlib.contextmanager
    def _use_accelerator(self) -> Iterator[None]:
        """Creates the accelerator; afterwards ends it and releases the folder's lock. After an error, removes the
        folder if it is new."""
        self.accelerator = accelerate_for(self.config["trainer"])
        try:
            yield
        except BaseException:
            self.folder.remove_if_new()
            raise
        finally:
            self.folder.release()
            gc.collect()  # a DDP wrapper that outlives its process group aborts at exit
            self.accelerator.end_training()
            AcceleratorState._reset_state(reset_partial_state=True)

    # --- the folder -------------------------------------------------------------------------------------

    def _claim(self) -> tuple[bool, dict[str, Any]]:
        """Takes the folder. Returns whether its run is already finished, and the config to train with."""
        self.folder.claim(PREDECESSOR if "SLURM_RESTART_COUNT" in os.environ else 0.0)
        if self.config["resume"] is None:
            self.config = self.folder.merge_config(self.config, self.given)
        else:
            self._extend()
        if not is_finished(read_summary(self.folder.path), self.config["trainer"]["max_steps"]):
            self.extended_from = self._finished_step()
            source = self.config["warm_start"]["checkpoint"]
            if source is not None and checkpoint.newest(self.folder.path / "checkpoints") is None:
                warm_start.note(self.folder.path, source)
            checkpoint.remove_unfinished(self.folder.path / "checkpoints")  # no later save will do it
            return False, self.config
        checked = self._has_same_data()
        summary = read_summary(self.folder.path)
        assert summary is not None, "it has been asked for its step"
        shipper = self._shipper(recorded_code(summary))
        if not shipper.has_all():
            guard = checkpoint.require(self.folder.path).state["guard"]
            shipper.start(summary.get("data", {}))
            shipper.close("FINISHED", self._artifacts(), end_tags(guard, summary))
        unchecked = "" if checked else " (data not checked: there is nothing here to compare its samples with)"
        early = f", {text}" if (text := early_text(summary)) else ""
        print(f"{self.folder.path} is finished: {summary['step']} steps{early}{unchecked}. Its results:")
        print_report(
            summary, self.config["trainer"], self.folder.path, shipper.where, next_command(self.names, self.config)
        )
        return True, self.config

    def _finished_step(self) -> int | None:
        """The step at which this run was finished with a summary; None if it is not finished."""
        summary = read_summary(self.folder.path)
        return None if summary is None else int(summary["step"])

    def _extend(self) -> None:
        """Handles resume=FOLDER trainer.max_steps=N: uses the folder's own config with a later end."""
        stored = self.folder.stored_config()
        assert stored is not None, "the resolver has seen it"
        self.names = stored_names(self.folder.path)
        if "data.root" in self.given:  # files of weights lie below it too
            stored = move_paths(stored, stored["data"]["root"], self.config["data"]["root"])
        config = OmegaConf.create(stored)
        for key in self.given:
            if key == "resume":
                continue
            if key != "trainer.max_steps" and is_identity(key) and not is_file_of_weights(key):
                raise UserError(
                    f"resume={self.config['resume']} continues that run unchanged and takes trainer.max_steps=N "
                    f"alone; {key} would change it: start a new run, with warm_start.checkpoint=FOLDER if you like"
                )
            OmegaConf.update(config, key, OmegaConf.select(OmegaConf.create(self.config), key), merge=False)
        if not any(key == "tracking" or key.startswith("tracking.") for key in self.given):
            tracker: Tracker = declaration_of(stored["tracking"])
            tracker.check_trusted(self.folder.path)
        before, after = stored["trainer"]["max_steps"], config.trainer.max_steps
        if after != before and (early := early_text(read_summary(self.folder.path) or {})):
            raise UserError(
                f"{self.folder.path} {early}; a longer one would end there too: start another run with stop_when=never"
            )
        if after < before:
            raise UserError(f"trainer.max_steps={after} is before the end of that run ({before}); give a later one")
        if after > before:
            self.names = extend_names(self.names, after)
            found = checkpoint.require(self.folder.path)
            rows = found.state["metrics_rows"]  # raises before anything is stored
            checkpoint_rows(self.folder.path / "metrics.jsonl", rows, found.step, and_final=found.step == before)
            optimizer: Optimizer = declaration_of(stored["optimizer"])
            old, new = (optimizer.rate(found.step, n) for n in (before, after))
            print(
                f"extending {self.folder.path} from {before} to {after} steps. The learning rate follows the "
                f"schedule of a {after}-step run from here on: at step {found.step} it goes from {old:.1%} of "
                f"its peak to {new:.1%}, so this is not the run that {after} steps from the start would have been. "
                "Compare sets it apart, and the command that began it is refused from now on."
            )
        self.config = to_plain(config)

    # --- the run ----------------------------------------------------------------------------------------

    def _train(self) -> None:
        begin = time.monotonic()
        check_sharding(self.config["trainer"], self.accelerator.num_processes)
        code = code_state()
        load_modules(self.config)  # now, so that files edited during the run have no effect
        shipper = self._shipper(code)
        found = checkpoint.newest(self.folder.path / "checkpoints")
        on_main(lambda: provenance.check_images(build_part(self.config["data"]), is_new=found is None))
        trainer, track = trainer_assembly.build(self.config, self.folder.path, self.accelerator, shipper)
        done = found.step if found else 0
        on_main(lambda: provenance.begin(self.folder, self.config, trainer.reader.cache, code, done))
        if step := trainer.restore(found, self._finished_step()):
            self.accelerator.print(f"resuming {self.folder.path} at step {step}")
        is_main = self.accelerator.is_main_process
        if is_main:
            print(start_lines(trainer), flush=True)
        on_main(lambda: shipper.start(trainer.reader.cache.fingerprint()))
        status = "FAILED"
        summary = None
        try:
            if step == 0 and self.config["warm_start"]["checkpoint"] is not None:
                row = warm_start.first_row(trainer, self.config["warm_start"])
                on_main(lambda: trainer.metrics.append({"step": 0} | row))
            end = trainer.fit(step)
            with trainer.gathered():
                if is_main:
                    summary, results = self._finish(trainer, track, end, begin)
            status = "FINISHED"
        except SystemExit:
            status = "KILLED"
            raise
        finally:
            trainer.reader.cache.close()
            if is_main:
                finished = status == "FINISHED"
                tags = end_tags(trainer.guard.state(), summary)
                shipper.close(status, self._artifacts() if finished else [], tags)
        if summary is not None:
            print_report(
                summary, self.config["trainer"], self.folder.path, shipper.where, next_command(self.names, self.config)
            )
        trainer.during.wait()  # for the last evaluation, which may take hours
        if is_main:
            results.require_all(NotEvaluated)

    def evaluate(self) -> None:
        """Runs the config's `evaluation` on a finished run's weights. New values become a row; the summary and MLflow
        are updated."""
        code = code_of(code_state()).version
        with self._use_accelerator():
            self.folder.claim()
            self.names = stored_names(self.folder.path)
            path = self.folder.path
            end = end_step(read_summary(path), self.config["trainer"]["max_steps"])
            found = checkpoint.require(path)
            if found.step != end:
                raise UserError(f"{path} has no valid checkpoint of its last step, {end}; the newest is {found.step}'s")
            summary = read_summary(path)
            assert summary is not None, "the door has seen that the run is finished"
            rows = Rows(path / "metrics.jsonl")
            # the summary still has the last values of lost rows
            known = _drop_none(summary["metrics"] | last_values(rows, end))
            if damage := rows.damage(end):
                raise UserError(f"{path} is damaged, so nothing is evaluated: {damage}")
            shipper = self._shipper(recorded_code(summary))
            # a missing tap fails only the evaluation that needs it
            trainer, track = trainer_assembly.build(self.config | {"evaluation": {}}, path, self.accelerator, shipper)
            if not provenance.check_data(path, self.config, trainer.reader.cache):
                print(provenance.UNCHECKED)
            checkpoint.load_named(trainer.ema.shadow, found.tensors("ema"), str(found.folder))
            try:
                check_opened_images(self.config["evaluation"], trainer.reader.cache)
                results = evaluate_ema(self.config, trainer, track, end)
            finally:
                trainer.reader.cache.close()
            found_keys, withdrawn = _update_owners(summary.get("evaluation_keys", {}), results.keys)
            news: dict[str, Any] = {k: v for k, v in results.metrics.items() if known.get(k) != storable(v)}
            news |= dict.fromkeys(sorted(withdrawn & known.keys()))
            if news and not is_final(news):  # a row needs a final/ key to be recognised
                news |= results.metrics
            if news:
                trainer.metrics.append({"step": end} | news)
            summary["metrics"] = _drop_none(known | {key: storable(value) for key, value in news.items()})
            summary["evaluation_keys"] = found_keys
            before = summary.get("evaluation", {})  # a failed one keeps the values and settings of its last success
            asked = self.config["evaluation"].items()
            told = {k: v for k, v in asked if k not in results.failures or k not in before}
            summary["evaluation"] = before | with_digests(told)
            by = summary.get("evaluated_by", dict.fromkeys(before, provenance.last_code(path)))
            summary["evaluated_by"] = by | dict.fromkeys(told, code)
            write_whole(path / SUMMARY, json.dumps(summary, indent=1))
            shipper.start(trainer.reader.cache.fingerprint())
            shipper.close("FINISHED", self._artifacts(), end_tags(found.state["guard"], summary))
            print_report(summary, self.config["trainer"], path, shipper.where, self._next_command())
            results.require_all()

    def _finish(self, trainer: Trainer, track: Any, end: int, begin: float) -> tuple[dict[str, Any], Evaluated]:
        """Writes the row of the evaluation after the step `end`, the figure and summary.json."""
        results = evaluate_ema(self.config, trainer, track, end)
        if results.metrics:
            trainer.metrics.append({"step": end} | results.metrics)
        rows = Rows(trainer.metrics.path)
        write_whole(self.folder.path / "losses.png", losses_png(read_curves(rows, DRAWN.__contains__)[0]))
        if damage := rows.damage(end):
            warnings.warn(f"the summary of {self.folder.path} is of what can be read: {damage}", stacklevel=2)
        last = _drop_none(last_values(rows, end))
        summary = self._summary(trainer, end, last, time.monotonic() - begin) | {"evaluation_keys": results.keys}
        write_whole(self.folder.path / SUMMARY, json.dumps(summary, indent=1))
        return summary, results

    def _summary(self, trainer: Trainer, end: int, last: dict[str, Any], seconds: float) -> dict[str, Any]:
        on_gpu = self.accelerator.device.type == "cuda"
        stretches = provenance.read(self.folder.path)["code"]
        peak = (
            torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        )
        return {
            "experiment": self.names.experiment,
            "ablation": self.names.ablation,
            "overrides": self.names.overrides,
            "seed": self.config["seed"],
            "step": end,
            "ended_early": None
            if trainer.ended_early is None
            else {"step": end, "of": trainer.settings.max_steps, "why": trainer.ended_early},
            "extended_from": self.extended_from,
            "warm_start": warm_start.read_note(self.folder.path),
            "batch_size": trainer.settings.batch_size,
            "best": trainer.best,
            "metrics": last,
            "evaluation": with_digests(self.config["evaluation"]),
            "evaluated_by": dict.fromkeys(self.config["evaluation"], code_of(stretches[-1]).version),
            "parameters": parameters_by_part(trainer.model),
            "seconds": {
                "training": trainer.seconds,
                "this_process": seconds,
                "teacher_cache": teacher_cache_seconds(trainer.reader.cache),
            },
            "peak_memory_bytes": peak,
            "processes": self.accelerator.num_processes,
            "threads": torch.get_num_threads(),
            "device": str(self.accelerator.device),
            "data": trainer.reader.cache.fingerprint(),
            "validation_set": provenance.validation_set(trainer.reader.cache),
            "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
            "code": stretches,
        } | {key: value for key, value in stretches[-1].items() if key != "from_step"}

    def _has_same_data(self) -> bool:
        """`urepa.training.provenance.has_same_data` for a finished run, without making or copying any cache."""
        declared: Track = declaration_of(self.config["data"])
        track = build_part(self.config["data"] | {**declared.without_making, **declared.without_copies})
        teacher = build_part(self.config["teacher"]) if declaration_of(self.config["loss"]).taps else None
        return provenance.has_same_data(self.folder, self.config, track, teacher)

    # --- records ----------------------------------------------------------------------------------------

    def _artifacts(self) -> list[Path]:
        """The files that are sent to MLflow."""
        path = self.folder.path  # without generated/*/*.png, which may be thousands
        own = [path.glob(below + png) for below in ("", "buckets/*/") for png in ("*.png", "*/*.png")]
        return [self.folder.config_file, *sorted(chain(*own))]

    def _shipper(self, code: dict[str, Any]) -> Any:
        path = self.folder.path
        tags = tags_of(self.names, self.config) | {"folder": str(path), SCHEMA_TAG: str(SCHEMA)}
        tags |= {key: str(value) for key, value in code.items()}
        if (source := warm_start.read_note(path)) is not None:
            tags["warm_start"] = warm_start.in_words(source)
        known = {"name": self.names.title(self.config["seed"]), "params": flatten(self.config)}
        return build_part(self.config["tracking"], folder=path, run_tags=tags, **known)

    def _next_command(self) -> str:
        return next_command(self.names, self.config)


def _drop_none(metrics: dict[str, Any]) -> dict[str, Any]:
    """The metrics without those that a later row has set to null."""
    return {key: value for key, value in metrics.items() if value is not None}


def _update_owners(before: dict[str, list[str]], now: dict[str, list[str]]) -> tuple[dict[str, list[str]], set[str]]:
    """The metrics by evaluation after another evaluation, and the metrics that no evaluation reports any more. An
    evaluation that failed completely is not in `now` and keeps its metrics."""
    found = {key for keys in now.values() for key in keys}
    others = {name: [key for key in keys if key not in found] for name, keys in before.items() if name not in now}
    kept = found | {key for keys in others.values() for key in keys}
    return others | now, {key for keys in before.values() for key in keys} - kept
