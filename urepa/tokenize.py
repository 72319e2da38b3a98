"""`python -m urepa.tokenize run=FOLDER images=DIR out=FILE`: encodes images as codes with a run's tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from urepa.cli import CONF, prepare, run_command
from urepa.config.declared import declaration_of
from urepa.config.ranges import check_given, check_numbers
from urepa.core.errors import UserError
from urepa.core.files import check_file_target
from urepa.core.one_line_errors import one_line_mistakes
from urepa.runs.run_folder import require_config, to_plain

USAGE = "python -m urepa.tokenize run=outputs/NAME/seed0 images=DIR out=FILE.safetensors"


@hydra.main(config_path=CONF, config_name="tokenize", version_base="1.3")
def main(config: DictConfig) -> None:
    """Writes one file atomically."""
    with one_line_mistakes():
        asked = to_plain(config)
        check(asked)
        from urepa.inference.token_codes import tokenize

        print(tokenize(asked))


def check(asked: dict[str, Any]) -> None:
    """Raises UserError if keys are missing, the run has no tokenizer, or a path is not valid."""
    for key in ("run", "images", "out"):
        if asked[key] is None:
            raise UserError(f"say which {key}: {USAGE}")
    check_given(asked)
    check_numbers(asked)
    require_tokenizer(Path(asked["run"]))
    if not Path(asked["images"]).is_dir():
        raise UserError(f"images={asked['images']} is not a folder; give a folder with images")
    if Path(asked["out"]).suffix != ".safetensors":
        raise UserError(f"out={asked['out']} must be a safetensors file: give a name that ends in .safetensors")
    check_file_target("out", Path(asked["out"]))


def require_tokenizer(run: Path) -> Any:
    """The declared backbone of a run (`urepa.core.backbone_protocols.Tokenizer`). Raises UserError if it is not a
    tokenizer."""
    declared: Any = declaration_of(require_config(run)["backbone"])
    if not hasattr(declared, "codes"):
        raise UserError(f"{run} trained a {declared.noun}, which has no codes; give the run of a tokenizer")
    return declared


if __name__ == "__main__":
    prepare()
    run_command(main, "tokenize")
