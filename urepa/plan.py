"""`python -m urepa.plan +experiment=...`: predicts the cost of a run, or with -m of a sweep. Builds, reads and
downloads nothing. Predictions are marked as such; expected hours require a measurement (measured=FILE)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from urepa.cli import CONF, prepare, run_command
from urepa.core.files import check_file_target, write_whole
from urepa.core.one_line_errors import one_line_mistakes
from urepa.costs.bench_results import read_measured
from urepa.runs.run_folder import parse_overrides, to_plain
from urepa.training.checks.combinations import check
from urepa.training.checks.inputs import check_plan_inputs

if TYPE_CHECKING:
    from urepa.costs.estimate import Plan

GIB, MIB = 2**30, 2**20
OWN_KEYS = ("device", "measured", "out")
PENDING = "pending"


@hydra.main(config_path=CONF, config_name="plan", version_base="1.3")
def main(config: DictConfig) -> "Plan":
    """Prints one run's tables, or its line in a sweep."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    hydra_config = HydraConfig.get()
    overrides = list(hydra_config.overrides.task)
    with one_line_mistakes():
        parts = to_plain(config)
        check(parts, run_overrides(overrides))
        if parts["out"] is not None:
            check_file_target("out", Path(parts["out"]))
        measured = check_measured(parts)
        check_plan_inputs(parts)
        from urepa.costs.estimate import Device, plan

        planned = plan(parts, Device(**parts["device"]), measured)
        if hydra_config.mode == RunMode.MULTIRUN:
            print(line(planned, overrides))
        else:
            print("\n\n".join(tables(planned)))
        return planned
    raise AssertionError("one_line_mistakes has left the process")


def check_measured(parts: dict[str, Any]) -> Path | None:
    """The file in measured=FILE. Raises UserError if it is missing, or not a measurement of the device."""
    if parts["measured"] is None:
        return None
    read_measured(Path(parts["measured"]), parts["device"]["name"])
    return Path(parts["measured"])


class Report(Callback):
    """Prints the total after the last run of a sweep, and writes the file of out=FILE after every call."""

    def __init__(self) -> None:
        self.plans: list[Plan] = []

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        print(f"{'steps':>9}{'TFLOP a step':>14}{'peak GiB':>10}{'floor h':>10}{'expected h':>12}   run")

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if job_return.status == JobStatus.COMPLETED:
            self.plans.append(job_return.return_value)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        floor, expected = totals(self.plans)
        print(f"{'total':>9}{'':>24}{hours(floor):>10}{hours(expected):>12}   {len(self.plans)} runs")
        self._write(config)

    def on_run_end(self, config: DictConfig, **kwargs: Any) -> None:
        self._write(config)

    def _write(self, config: DictConfig) -> None:
        if config.out is not None:
            floor, expected = totals(self.plans)
            total = {"gpu_hours_floor": floor, "gpu_hours_expected": expected}
            content = {"runs": [p.as_dict() for p in self.plans], "total": total}
            write_whole(Path(config.out), json.dumps(content, indent=1))


def totals(plans: "list[Plan]") -> tuple[float | None, float | None]:
    """Lower bound and expected hours of several runs; None if one of them is not known."""
    return _sum([p.floor_hours for p in plans]), _sum([p.expected_hours for p in plans])


def _sum(values: list[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) if len(known) == len(values) else None


def hours(value: float | None) -> str:
    """Hours as text, or that they are not known yet."""
    if value is None:
        return PENDING
    return f"{value:.2f}" if value >= 0.1 else f"{value:.1g}"


def line(planned: "Plan", overrides: list[str]) -> str:
    """The line of one run of a sweep."""
    return (
        f"{planned.settings.max_steps:>9,}{planned.flops_per_step / 1e12:>14.1f}{planned.peak_bytes / GIB:>10.1f}"
        f"{hours(planned.floor_hours):>10}{hours(planned.expected_hours):>12}   {' '.join(run_overrides(overrides))}"
    )


def run_overrides(overrides: list[str]) -> list[str]:
    """The overrides that `train` accepts."""
    return [o for o in overrides if next(iter(parse_overrides([o]))).split(".")[0] not in OWN_KEYS]


# --- one run's tables ----------------------------------------------------------------------------------------


def tables(planned: "Plan") -> list[str]:
    """The tables of one run."""
    s = planned.settings
    accumulated = f" in {s.accumulation} parts" if s.accumulation > 1 else ""
    head = f"{s.max_steps:,} steps of {s.batch_size} samples{accumulated}, {s.precision}, on one {planned.device.name}"
    shown = [head, parameters(planned), flops(planned), memory(planned), caches(planned), time(planned)]
    if s.sharding is not None or planned.fits is False:
        from urepa.costs import gpu_memory

        shown.append(gpu_memory.table(planned))
    shown += [buckets(planned)] if len(planned.counted.buckets) > 1 else []
    return shown + ([measured_table(planned)] if planned.measured else [])


def parameters(planned: "Plan") -> str:
    """The number of parameters by part, and how many of them train."""
    by_part = planned.counted.parameters
    rows = [f"{'parameters':<26}{'all':>15}{'trainable':>15}"]
    rows += [f"  {part:<24}{n['all']:>15,}{n['trainable']:>15,}" for part, n in by_part.items()]
    both = [sum(n[k] for n in by_part.values()) for k in ("all", "trainable")]
    return "\n".join([*rows, f"  {'sum':<24}{both[0]:>15,}{both[1]:>15,}"])


def flops(planned: "Plan") -> str:
    """FLOPs by part and direction."""
    forward, backward = planned.flops("forward"), planned.flops("backward")
    size = planned.settings.batch_size
    rows = [f"{'GFLOP a sample':<26}{'forward':>15}{'backward':>15}{'TFLOP a step':>15}"]

    def row(name: str, f: float, b: float) -> str:
        return f"  {name:<24}{f / size / 1e9:>15.3f}{b / size / 1e9:>15.3f}{(f + b) / 1e12:>15.3f}"

    rows += [row(part, forward[part], backward[part]) for part in forward]
    rows.append(row("sum", sum(forward.values()), sum(backward.values())))
    if planned.stop_step is not None:
        rows.append(f"  {f'from step {planned.stop_step:,} on':<54}{planned.flops_after_stop / 1e12:>15.3f}")
    return "\n".join(rows)


def memory(planned: "Plan") -> str:
    """The memory on the device."""
    counted = planned.counted
    rows = [f"{'memory on the device':<45}{'GiB':>11}"]
    rows += [f"  {name:<43}{size / GIB:>11.3f}" for name, size in counted.weights.items() if size]
    per_sample = f"{planned.saved_bytes / planned.micro_batch / MIB:.1f} MiB a sample at {planned.micro_batch}"
    rows.append(f"  {'saved for backward':<43}{planned.saved_bytes / GIB:>11.3f}   {per_sample}")
    room = planned.device.memory_bytes
    has = "" if room is None else f"   {'of' if planned.fits else 'DOES NOT FIT into'} {room / GIB:.1f}"
    rows.append(f"  {'peak, without workspaces':<43}{planned.peak_bytes / GIB:>11.3f}{has}")
    return "\n".join(rows)


def caches(planned: "Plan") -> str:
    """The size of the data on disk and in memory."""
    counted = planned.counted
    samples = ", ".join(f"{n:,} {split}" for split, n in counted.samples.items())
    rows = [f"{'caches':<12}{'records':>13}{'bytes each':>13}{'disk GB':>10}{'RAM, all warm, GB':>20}   {samples}"]
    rows += [
        f"  {c.name:<10}{c.records:>13,}{c.record_bytes:>13,}{c.disk_bytes / 1e9:>10.2f}{c.disk_bytes / 1e9:>20.2f}"
        for c in counted.caches
    ]
    disk = sum(c.disk_bytes for c in counted.caches) / 1e9
    rows.append(f"  {'sum':<10}{'':>26}{disk:>10.2f}{disk:>20.2f}")
    if counted.squares:
        rows.append(f"  {'images':<10}{counted.squares:>13,}   JPEG squares, read in training; their size is not known")
    rows.append(f"  {'reader':<10}{'':>36}{counted.reader_bytes / 1e9:>20.2f}   needed; warm is only faster")
    return "\n".join(rows)


def buckets(planned: "Plan") -> str:
    """The cost of a step in each bucket, of which the FLOPs above are the mean, and the bucket of the peak memory."""
    from urepa.costs.bucket_costs import is_weighted, largest

    by_name, s = planned.counted.buckets, planned.settings
    titles = f"{'x0':>15}{'steps an epoch':>16}{'TFLOP a step':>14}{'step, GiB':>11}"
    rows = [f"{'buckets':<12}{titles}   training images"]
    for name, one in by_name.items():
        steps, images = one.steps_an_epoch(s.batch_size), "not known yet"
        if one.samples is not None:
            images = f"{one.samples['train']:,}"
        flops = sum(one.step.forward.values()) + sum(one.step.backward.values())
        rows.append(
            f"  {name:<10}{'x'.join(map(str, one.latent_shape)):>15}{PENDING if steps is None else f'{steps:,}':>16}"
            f"{flops * s.accumulation / 1e12:>14.3f}{one.step.peak / GIB:>11.3f}   {images}"
        )
    how = "weighted by their steps" if is_weighted(by_name) else "unweighted, as no list says yet what each has"
    rows.append(f"  FLOPs above are the mean over the buckets, {how}; memory is that of {largest(by_name)}")
    if not is_weighted(by_name):
        rows.append("  caches are as if all images were of the bucket with the largest records")
    return "\n".join(rows)


def time(planned: "Plan") -> str:
    """Lower bound and expected hours."""
    device, step = planned.device, planned.floor_step_s
    rows = [f"{'hours on one ' + device.name:<26}{'hours':>15}"]
    if step is None or device.flops_per_s is None:
        rows.append(f"  {'floor':<24}{PENDING:>15}   this device has no stated rate")
    else:
        validation = planned.validation_flops / device.flops_per_s / 3600
        at = f"{step * 1e3:.1f} ms a step at {device.flops_per_s / 1e12:.0f} TFLOP/s (estimated)"
        rows.append(f"  {'floor':<24}{hours(planned.floor_hours):>15}   {at}; {hours(validation)} h of it validation")
    row = planned.reference
    if row is None:
        why = "not measured on this device: measured=FILE takes what `python -m urepa.bench` wrote"
    else:
        why = f"at the {row['tflops_per_s']:.3g} TFLOP/s measured at batch {row['batch_size']}"
    rows.append(f"  {'expected':<24}{hours(planned.expected_hours):>15}   {why}")
    return "\n".join(rows)


def measured_table(planned: "Plan") -> str:
    """The values measured by `bench` next to the predicted ones; ratios only for the same step."""
    rows = [
        f"{'measured':<24}{'batch':>7}{'step s':>10}{'of floor':>10}{'TFLOP/s':>10}"
        f"{'peak GiB':>10}{'of plan':>9}{'saved MiB a sample':>20}{'of plan':>9}"
    ]
    saved = planned.saved_bytes / planned.micro_batch
    for row in planned.measured:
        same, peak = planned.is_same_step(row), row["peak_memory_bytes"]
        rows.append(
            f"  {row['path']:<22}{row['batch_size']:>7}{row['step_s']:>10.4f}"
            f"{ratio(row['step_s'], planned.floor_step_s if same else None, 2):>10}{row['tflops_per_s']:>10.3g}"
            f"{ratio(peak, GIB, 2):>10}{ratio(peak, planned.peak_bytes if same else None, 3):>9}"
            f"{row['saved_bytes_per_sample'] / MIB:>20.1f}"
            f"{ratio(row['saved_bytes_per_sample'], saved if same else None, 3):>9}{bench_name(row)}"
        )
    return "\n".join(rows)


def bench_name(row: dict[str, Any]) -> str:
    """The name of the row's benchmark, if the file has several."""
    return f"   {row['run']}" if "run" in row else ""


def ratio(value: float | None, of: float | None, digits: int) -> str:
    """The quotient, or a dash if one of the values is not known."""
    return "-" if value is None or of is None else f"{value / of:.{digits}f}"


if __name__ == "__main__":
    prepare()
    run_command(main, "plan")
