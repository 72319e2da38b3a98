"""`python -m urepa.train_classifier data=...`: trains a small classifier on a track's training images.
`evaluation=cifar10_fd` and `fashion_fd` compare generated images with real ones in its features. After a kill the same
command starts again from the beginning."""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import DictConfig

from urepa.cli import CONF, prepare, run_command
from urepa.config.ranges import check_given, check_numbers
from urepa.core.errors import UserError
from urepa.core.one_line_errors import one_line_mistakes
from urepa.runs.run_folder import parse_overrides, to_plain
from urepa.training.checks.inputs import check_classifier


@hydra.main(config_path=CONF, config_name="train_classifier", version_base="1.3")
def main(config: DictConfig) -> None:
    """Writes one file atomically; does nothing if it already exists."""
    from hydra.core.hydra_config import HydraConfig

    overrides = list(HydraConfig.get().overrides.task)
    with one_line_mistakes():
        if any(key.partition(".")[0] == "teacher" for key in parse_overrides(overrides)):
            raise UserError("teacher has no effect here: the classifier only uses images; leave it out")
        parts = to_plain(config)
        check_given(parts)
        check_numbers(parts)
        out: Path = check_classifier(parts)
        from urepa.evaluation.classifier_training import train_classifier
        from urepa.training.assembly import build_part

        train_classifier(build_part(parts["data"]), parts["epochs"], parts["seed"], out)


if __name__ == "__main__":
    prepare()
    run_command(main, "train_classifier")
