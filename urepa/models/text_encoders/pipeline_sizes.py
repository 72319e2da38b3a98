"""Where the files of text encoders lie: a folder in the layout of a diffusers pipeline or of transformers, or the same
on the hub. Without torch."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from urepa.core.errors import UserError
from urepa.core.files import read_json
from urepa.core.hub_names import download_failure, is_hub_id, resolve

KEY = "data.text_encoder.model"
# of a network, the first one that is there: plain, in shards, and the same in fp16, where a repository has no other
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
HALVES = ("model.fp16.safetensors", "model.safetensors.index.fp16.json")
OF_TOKENIZERS = ("tokenizer*", "vocab.json", "merges.txt", "spiece.model", "special_tokens_map.json")


class Padding(Enum):
    """What becomes of the positions behind a caption's end."""

    attended = "attended"  # the network is given no mask, and all positions count
    masked = "masked"  # they are 0 and do not count


class Floats(Enum):
    """What a network is read and computed in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


SHORT = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def stored_name(model: str) -> str:
    """Of a folder or a hub id, without where it lies and which revision it is, as names of stores and manifests have
    it."""
    return resolve(model)[0].rpartition("/")[2] if is_hub_id(model) else Path(model).resolve().name


def folder_name(part: str, number: int) -> str:
    """Of the first, second or third `part` of a pipeline: text_encoder, text_encoder_2."""
    return part if number == 1 else f"{part}_{number}"


def places(folder: Path, number: int = 1) -> tuple[Path, Path]:
    """The folders of tokenizer and network: FOLDER/tokenizer and FOLDER/text_encoder as diffusers has them, with a
    number behind them where it is not the first, or FOLDER itself. UserError where a file is missing."""
    names = folder_name("tokenizer", number), folder_name("text_encoder", number)
    has_parts = number > 1 or (folder / names[1]).is_dir()
    tokenizer, network = (folder / names[0], folder / names[1]) if has_parts else (folder, folder)
    weights = [network / name for name in (*WEIGHTS, *HALVES) if (network / name).is_file()] or [network / WEIGHTS[0]]
    wanted = [network / "config.json", weights[0], tokenizer / "tokenizer_config.json"]
    if missing := [file for file in wanted if not file.is_file()]:
        raise UserError(
            f"{KEY}={folder} has no {missing[0].relative_to(folder)}; give a local folder with {names[0]}/ and "
            f"{names[1]}/ (weights as safetensors), as a diffusers pipeline has them, or a hub id"
        )
    return tokenizer, network


def variant_of(network: Path) -> str | None:
    """ "fp16" where the folder of a network has no weights but those; None: it has its plain ones."""
    return None if any((network / name).is_file() for name in WEIGHTS) else "fp16"


def patterns(numbers: Sequence[int]) -> list[str]:
    """The files that are read of these text encoders of a repository, with the first one's also where the repository
    is no pipeline."""
    found = ["config.json", *WEIGHTS, *OF_TOKENIZERS] if 1 in numbers else []
    for number in numbers:
        network = folder_name("text_encoder", number)
        found += [f"{folder_name('tokenizer', number)}/*", f"{network}/config.json"]
        found += [f"{network}/model*.safetensors*"]
    return found


def local_folder(model: str, numbers: Sequence[int]) -> Path:
    """The folder on this disk; of a hub id its files are fetched, or taken from the hub's cache. UserError where they
    are not to be had."""
    if not is_hub_id(model):
        return Path(model)
    from huggingface_hub import snapshot_download

    name, revision = resolve(model)
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns(numbers)))
    except (OSError, ValueError) as error:  # the hub's own errors are of these two kinds
        reason = download_failure(error, model)
        raise UserError(f"{KEY}={model} could not be loaded ({reason}); or give a local folder") from error


def known_config(model: str, number: int) -> dict[str, Any] | None:
    """config.json of one of a pipeline's text encoders, in a local folder or the hub's cache; None where it is in
    neither. Nothing is fetched."""
    names = [f"{folder_name('text_encoder', number)}/config.json", *(["config.json"] if number == 1 else [])]
    if is_hub_id(model):
        from huggingface_hub import try_to_load_from_cache

        repository, revision = resolve(model)
        cached = [try_to_load_from_cache(repository, name, revision=revision) for name in names]
        files = [Path(file) for file in cached if isinstance(file, str)]
    else:
        files = [file for name in names if (file := Path(model) / name).is_file()]
    return dict(read_json(files[0])) if files else None


class FromFolder:
    """What declarations of text encoders of a folder or a hub id have alike."""

    model: str

    @property
    def numbers(self) -> tuple[int, ...]:
        """Which text encoders of a pipeline."""
        return (1,)

    def check(self) -> None:
        """Whether the network has its sizes is known when it is read."""

    def check_files(self) -> None:
        if not is_hub_id(self.model):
            for number in self.numbers:
                places(Path(self.model), number)

    def hub_files(self) -> dict[str, list[str]]:
        return {self.model: patterns(self.numbers)} if is_hub_id(self.model) else {}

    @property
    def name(self) -> str:
        """Of the model, as stores and manifests have it."""
        return stored_name(self.model)
