"""`python -m urepa.export run=FOLDER`: a run's EMA weights as others load them, with a model card."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from urepa.cli import CONF, prepare, run_command
from urepa.config.declared import declaration_of
from urepa.core.backbone_protocols import Backbone, LoRA
from urepa.core.errors import UserError
from urepa.core.files import check_folder_target
from urepa.core.one_line_errors import one_line_mistakes
from urepa.runs.run_folder import require_config, to_plain


@hydra.main(config_path=CONF, config_name="export", version_base="1.3")
def main(config: DictConfig) -> None:
    """One folder, written whole or not at all."""
    with one_line_mistakes():
        asked = to_plain(config)
        check(asked)
        from urepa.inference.export_weights import export

        folder = export(asked)
        print(f"exported to {folder}/")
        if asked["push"] is not None:
            from urepa.inference.push_export import push

            print(f"uploaded to {push(folder, asked['push'], asked['private'])}")


def check(asked: dict[str, Any]) -> None:
    """A UserError where there is nothing to export."""
    if asked["run"] is None:
        raise UserError("say which run: python -m urepa.export run=outputs/NAME/seed0")
    if asked["out"] is not None and not Path(asked["out"]).exists():
        check_folder_target("out", Path(asked["out"]))
    if asked["push"] is not None:
        check_push(asked["push"])
    elif not asked["private"]:
        raise UserError("private=false has no effect without push=OWNER/NAME; give that too")
    config = require_config(Path(asked["run"]))
    lora: LoRA = declaration_of(config["lora"])
    backbone: Backbone = declaration_of(config["backbone"])
    if asked["format"] == "kohya" and not (lora.has_adapters and backbone.is_diffusers_unet):
        what = "the whole U-Net" if backbone.is_diffusers_unet else f"a {backbone.noun}"
        raise UserError(f"format=kohya is a layout of LoRA on a U-Net, and this run trained {what}; drop it")
    if asked["format"] == "kohya" and getattr(lora, "use_dora", False):
        raise UserError("format=kohya has no place for the trained lengths of DoRA; drop it")
    if lora.has_adapters and backbone.base is None:
        raise UserError("this run's LoRA changes random weights that are nowhere else: there is nothing to export")


def check_push(name: str) -> None:
    """Raises UserError if the name cannot be a repository's, or the hub cannot be written to from here."""
    from urepa.inference.push_export import require_login

    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) is None:
        raise UserError(f"push={name}: give the repository as OWNER/NAME")
    require_login()


if __name__ == "__main__":
    prepare()
    run_command(main, "export")
