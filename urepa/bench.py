"""`python -m urepa.bench [+experiment=...]`: measures the time of an experiment's training step, with random data.

It is measured in one process, in turns with another loop: `bench.against=documented` is the description's loop
(docs/errata.md), `bench.against=online` the same step with the teacher run on the batch's images, and
`bench.against=plain` a straightforward loop. With `bench.parts=true` the step is also measured without each of its
optimisations. Neither caches nor a teacher's weights are needed; with `backbone.weights=random` the backbone's are not
needed either. `python -m urepa.bench_reading` measures reading. For data with buckets every step uses the largest
bucket, as the output says.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from urepa.cli import CONF, prepare, run_command
from urepa.core.files import check_file_target, check_folder, write_whole
from urepa.core.one_line_errors import one_line_mistakes
from urepa.costs.benchmark.what_can_be_timed import check_bench
from urepa.runs.run_folder import to_plain
from urepa.training.checks.combinations import check


@hydra.main(config_path=CONF, config_name="bench", version_base="1.3")
def main(config: DictConfig) -> None:
    """Prints a table; with `out=FILE` also writes it as JSON."""
    from hydra.core.hydra_config import HydraConfig

    with one_line_mistakes():
        settings = to_plain(config)
        own = ("bench.", "out=")
        check(settings, [o for o in HydraConfig.get().overrides.task if not o.startswith(own)])
        check_bench(settings)
        check_folder("bench.folder", Path(settings["bench"]["folder"]))
        if settings["out"] is not None:
            check_file_target("out", Path(settings["out"]))
        rows = run(settings)
        print(table(rows))
        if settings["out"] is not None:
            write_whole(Path(settings["out"]), json.dumps(rows, indent=1))


def run(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of `urepa.costs.benchmark.timing`, with versions and precision added."""
    import gc
    from importlib.metadata import version

    import torch

    from urepa.costs.benchmark.loops import BenchLoops
    from urepa.costs.benchmark.timing import measure
    from urepa.training.run_lifecycle import accelerate_for

    settings, trainer = config["bench"], config["trainer"]
    accelerator = accelerate_for(trainer)
    with tempfile.TemporaryDirectory(dir=settings["folder"], prefix=".bench-") as place:
        bench = BenchLoops(config, Path(place), accelerator)
        others = {"documented": bench.description_loop, "online": bench.online_loop, "plain": bench.plain_loop}
        loops = [others[settings["against"]]()] if settings["against"] is not None else []
        loops.append(bench.training_loop())
        if settings["parts"]:
            loops += bench.loops_without_parts()
        rows = measure(
            loops,
            bench.trainer.model,
            trainer["batch_size"],
            accelerator.device,
            settings["steps"],
            settings["rounds"],
        )
        bench.trainer.reader.cache.close()
        bucket = {"bucket": bench.bucket} if bench.bucket else {}
        del bench, loops, others
        gc.collect()
    names = ("torch", "diffusers", "accelerate")
    about = {"precision": trainer["precision"], "frozen": trainer["frozen"], "attention": trainer["attention"]}
    about |= {"channels_last": trainer["channels_last"], "compile": trainer["compile"]}
    about |= {"versions": {name: version(name) for name in names}, "cuda": torch.version.cuda}
    return [row | about | bucket for row in rows]


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as text. The last column is the step time of the first row divided by that of this row."""
    titles = {"s/step": 9, "images/s": 10, "TFLOP/s": 9, "peak GiB": 10, "saved MiB": 11, "waits": 8}
    titles |= {"faults": 10, "speed": 8}
    head = f"{'loop':<24}" + "".join(f"{title:>{width}}" for title, width in titles.items())
    bucket = f", all of bucket {rows[0]['bucket']} (the largest)" if "bucket" in rows[0] else ""
    lines = [f"{rows[0]['device']}, batch {rows[0]['batch_size']}, {rows[0]['precision']}{bucket}", head]
    for row in rows:
        peak = row["peak_memory_bytes"]
        memory = "-" if peak is None else f"{peak / 2**30:.1f}"
        faults = "-" if row["minor_faults_per_step"] is None else f"{row['minor_faults_per_step']:.0f}"
        lines.append(
            f"{row['path']:<24}{row['step_s']:>9.3f}{row['images_per_s']:>10.1f}{row['tflops_per_s']:>9.2f}{memory:>10}"
            f"{row['saved_bytes_per_sample'] / 2**20:>11.1f}{row['data_wait_share']:>8.1%}"
            f"{faults:>10}{rows[0]['step_s'] / row['step_s']:>7.2f}x"
        )
    notes = "saved: per sample, for the backward pass; faults: minor page faults a step; speed: against the first line"
    return "\n".join([*lines, notes])


if __name__ == "__main__":
    prepare()
    run_command(main, "bench")
