"""`python -m urepa.preprocess data=...`: makes a track's caches, so that training finds them."""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from urepa.doors import CONF, one_line_mistakes, open_door, prepare
from urepa.runs import plain


@hydra.main(config_path=CONF, config_name="preprocess", version_base="1.3")
def main(config: DictConfig) -> None:
    """Latents and teacher tokens, each made if it is missing, checked if it is there."""
    with one_line_mistakes():
        from urepa.assembly import make

        parts = plain(config)
        parts["data"]["build_on_first_use"] = True
        track, teacher = make(parts["data"]), make(parts["teacher"])
        cache = track.open(teacher)
        counts = ", ".join(f"{len(samples)} {split}" for split, samples in cache.splits.items())
        print(f"{track.folder}: {counts}")
        cache.close()


if __name__ == "__main__":
    prepare()
    open_door(main, "preprocess")
