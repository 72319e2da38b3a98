"""`python -m urepa.train_encoder data=...`: trains a small masked autoencoder on a track's training images and nothing
else. `teacher=own_mae` is its encoder. After a kill the same command continues from a state that is kept about every
minute, at the end of an epoch."""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from urepa.cli import CONF, prepare, run_command
from urepa.config.ranges import check_given, check_numbers
from urepa.core.errors import UserError
from urepa.core.one_line_errors import one_line_mistakes
from urepa.runs.run_folder import parse_overrides, to_plain
from urepa.training.checks.inputs import check_encoder


@hydra.main(config_path=CONF, config_name="train_encoder", version_base="1.3")
def main(config: DictConfig) -> None:
    """Writes one file atomically; does nothing if it already exists."""
    from hydra.core.hydra_config import HydraConfig

    overrides = list(HydraConfig.get().overrides.task)
    with one_line_mistakes():
        if any(key.partition(".")[0] == "teacher" for key in parse_overrides(overrides)):
            raise UserError("teacher has no effect here: the encoder only uses images; leave it out")
        parts = to_plain(config)
        check_given(parts)
        check_numbers(parts)
        out, settings = check_encoder(parts)
        from urepa.training.assembly import build_part
        from urepa.training.encoder_training import train_encoder

        train_encoder(build_part(parts["data"]), settings, out)


if __name__ == "__main__":
    prepare()
    run_command(main, "train_encoder")
