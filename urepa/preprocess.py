"""`python -m urepa.preprocess data=...`: makes a track's caches, so that training finds them."""

from __future__ import annotations

import re
from typing import Any

import hydra
from omegaconf import DictConfig

from urepa.cli import CONF, prepare, run_command
from urepa.config.ranges import check_given, check_numbers
from urepa.core.errors import UserError
from urepa.core.one_line_errors import one_line_mistakes
from urepa.runs.run_folder import to_plain
from urepa.training.checks.inputs import check_preprocess


@hydra.main(config_path=CONF, config_name="preprocess", version_base="1.3")
def main(config: DictConfig) -> None:
    """The stage that is asked for, or all of them in order."""
    with one_line_mistakes():
        parts = to_plain(config)
        check_given(parts)
        check_numbers(parts)
        index, count = parse_shard(parts["shard"])
        check_preprocess(parts)
        from urepa.data.stages.build import Build
        from urepa.data.stores.lmdb_store import Part
        from urepa.data.tracks.latents import LatentTrack
        from urepa.training.assembly import build_part, make

        if parts["data"]["_target_"].endswith("PixelTrack"):
            build_pixels(make(parts["data"]), build_part(parts["teacher"]), parts["stage"])
            return
        track: LatentTrack = make(parts["data"])
        Build(track, build_part(parts["teacher"]), Part(index, count), parts["batch_size"]).run(parts["stage"])


def parse_shard(text: str) -> tuple[int, int]:
    """ "2/8" as (2, 8)."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not int(match[1]) < int(match[2]):
        raise UserError(f"shard={text}: give i/n with i from 0 to n-1")
    return int(match[1]), int(match[2])


def build_pixels(track: Any, teacher: Any, stage: str) -> None:
    """A small track's caches are made in one go; the stages `verify` and `digest` are as for any others."""
    track.build(teacher)
    if stage == "digest":
        from urepa.data.stores.sealing import add_digests

        for store in track.store_folders(teacher):
            add_digests(store)
    cache = track.open(teacher)
    counts = ", ".join(f"{len(samples)} {split}" for split, samples in cache.splits.items())
    print(f"{track.folder}: {counts}")
    if stage == "verify":
        from urepa.data.stages.verify import verify

        verify(str(track.folder), cache)
    cache.close()


if __name__ == "__main__":
    prepare()
    run_command(main, "preprocess")
