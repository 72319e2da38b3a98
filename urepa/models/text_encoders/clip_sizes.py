"""Where the files of a CLIP's text encoder lie, without torch."""

from __future__ import annotations

from pathlib import Path

from urepa.core.errors import UserError


def places(folder: Path) -> tuple[Path, Path]:
    """The folders of tokenizer and network: FOLDER/tokenizer and FOLDER/text_encoder as diffusers has them, or FOLDER
    itself. UserError where a file is missing."""
    has_parts = (folder / "text_encoder").is_dir()
    tokenizer, network = (folder / "tokenizer", folder / "text_encoder") if has_parts else (folder, folder)
    wanted = [network / "config.json", network / "model.safetensors", tokenizer / "tokenizer_config.json"]
    missing = [file for file in wanted if not file.is_file()]
    if missing:
        raise UserError(
            f"data.text_encoder.model={folder} has no {missing[0].relative_to(folder)}; give a local folder with "
            "tokenizer/ and text_encoder/ (weights as safetensors), as a diffusers pipeline has them"
        )
    return tokenizer, network
