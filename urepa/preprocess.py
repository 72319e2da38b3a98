"""`python -m urepa.preprocess data=...`: makes a track's caches before training, and reads, writes and judges them."""

from __future__ import annotations

import re

import hydra
from omegaconf import DictConfig

from urepa.cli import CONF, prepare, run_command
from urepa.config.command_schemas import BESIDE
from urepa.config.declared import build_errors, declaration_of
from urepa.config.ranges import check_given, check_numbers
from urepa.core.errors import UserError
from urepa.core.one_line_errors import one_line_mistakes
from urepa.core.track_protocols import Track
from urepa.runs.run_folder import to_plain
from urepa.training.checks.inputs import check_preprocess


@hydra.main(config_path=CONF, config_name="preprocess", version_base="1.3")
def main(config: DictConfig) -> None:
    """Runs the requested stage, or all stages in order."""
    with one_line_mistakes():
        parts = to_plain(config)
        check_given(parts)
        check_numbers(parts)
        shard = parse_shard(parts["shard"])
        check_preprocess(parts)
        from urepa.training.assembly import build_part

        track: Track = declaration_of(parts["data"])
        if parts["stage"] in BESIDE:
            from urepa.data.stages.exchange import Exchange

            with build_errors(parts["data"]):
                given = {key: parts[key] for key in ("webdataset", "shard_size", "compared_with", "batch_size")}
                Exchange(track, declaration_of(parts["teacher"]), **given).run(parts["stage"])
            return
        with build_errors(parts["data"]):
            track.make_caches(build_part(parts["teacher"]), parts["stage"], shard, parts["batch_size"])


def parse_shard(text: str) -> tuple[int, int]:
    """ "2/8" as (2, 8)."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not int(match[1]) < int(match[2]):
        raise UserError(f"shard={text}: give i/n with i from 0 to n-1")
    return int(match[1]), int(match[2])


if __name__ == "__main__":
    prepare()
    run_command(main, "preprocess")
