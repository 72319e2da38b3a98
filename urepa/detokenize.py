"""`python -m urepa.detokenize run=FOLDER codes=FILE out=DIR [keep=K]`: decodes images from codes with a run's
tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from urepa.cli import CONF, prepare, run_command
from urepa.config.ranges import check_given, check_numbers
from urepa.core.errors import UserError
from urepa.core.files import check_folder_target
from urepa.core.one_line_errors import one_line_mistakes
from urepa.runs.run_folder import parse_overrides, to_plain
from urepa.tokenize import require_tokenizer

USAGE = "python -m urepa.detokenize run=outputs/NAME/seed0 codes=FILE.safetensors out=DIR"
OF_APG = ("eta", "threshold", "momentum")


@hydra.main(config_path=CONF, config_name="detokenize", version_base="1.3")
def main(config: DictConfig) -> None:
    """Writes a PNG for each row of codes. Existing images of the same names are overwritten."""
    from hydra.core.hydra_config import HydraConfig

    given = list(parse_overrides(list(HydraConfig.get().overrides.task)))
    with one_line_mistakes():
        asked = to_plain(config)
        check(asked, given)
        from urepa.inference.token_codes import detokenize

        print(detokenize(asked))


def check(asked: dict[str, Any], given: list[str]) -> None:
    """Raises UserError if keys are missing or have no effect, the run has no tokenizer, or a path is not valid.

    Args:
        given: the keys on the command line.
    """
    for key in ("run", "codes", "out"):
        if asked[key] is None:
            raise UserError(f"say which {key}: {USAGE}")
    check_given(asked)
    check_numbers(asked)
    declared = require_tokenizer(Path(asked["run"]))
    if not Path(asked["codes"]).is_file():
        raise UserError(f"codes={asked['codes']} does not exist; make it with python -m urepa.tokenize")
    check_folder_target("out", Path(asked["out"]))
    if asked["keep"] is not None and asked["keep"] > declared.registers:
        raise UserError(
            f"keep={asked['keep']}: this run has {declared.registers} codes per image; give as many or fewer"
        )
    for key in given:
        if key in OF_APG and (asked["rule"] != "apg" or asked["guidance"] == 1):
            raise UserError(f"{key} has no effect without rule=apg and a guidance other than 1; drop it")
    if "rule" in given and asked["guidance"] == 1:
        raise UserError("rule has no effect with guidance=1, which is no guidance; drop one of them")


if __name__ == "__main__":
    prepare()
    run_command(main, "detokenize")
