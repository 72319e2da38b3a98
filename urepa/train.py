"""`python -m urepa.train`: composes, trains, validates, evaluates; the same command resumes."""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from urepa import ranks
from urepa.checks import check
from urepa.doors import CONF, one_line_mistakes, open_door, prepare
from urepa.runs import plain


@hydra.main(config_path=CONF, config_name="train", version_base="1.3")
def main(config: DictConfig) -> None:
    """One run. torch is imported only now, so that --help and config errors come at once."""
    from hydra.core.hydra_config import HydraConfig

    hydra_config = HydraConfig.get()
    with one_line_mistakes():
        ranks.adopt_slurm()
        check(plain(config), list(hydra_config.overrides.task))
        from urepa.session import Session

        Session(
            config,
            folder=hydra_config.runtime.output_dir,
            overrides=list(hydra_config.overrides.task),
            choices=dict(hydra_config.runtime.choices),
        ).run()


if __name__ == "__main__":
    prepare()
    open_door(main, "train")
