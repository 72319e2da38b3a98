"""The files of text encoders, without torch: a folder in the layout of a diffusers pipeline or of transformers, local
or on the hub."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from urepa.core.errors import UserError
from urepa.core.files import read_json
from urepa.core.hub_names import download_failure, is_hub_id, resolve

KEY = "data.text_encoder.model"
# the first of these files that exists is used: weights in one file or in shards, then the same in fp16
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
HALVES = ("model.fp16.safetensors", "model.safetensors.index.fp16.json")
OF_TOKENIZERS = ("tokenizer*", "vocab.json", "merges.txt", "spiece.model", "special_tokens_map.json")


class Padding(Enum):
    """How the padding after a caption's end is treated."""

    attended = "attended"  # the network gets no mask, and the record's mask includes all positions
    masked = "masked"  # the tokens there are 0, and the record's mask excludes them


class T5Padding(Enum):
    """The positions after a caption's end in a T5."""

    attended = "attended"
    masked = "masked"
    one_counts = "one_counts"  # masked, except the first one: the mask includes it, with the network's output


class Floats(Enum):
    """The data type in which a network is loaded and computed."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


SHORT = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def stored_name(model: str) -> str:
    """The name of a model in stores and manifests: the last part of a folder or hub id, without its revision."""
    return resolve(model)[0].rpartition("/")[2] if is_hub_id(model) else Path(model).resolve().name


def folder_name(part: str, number: int) -> str:
    """The folder of a pipeline's first, second or third `part`: text_encoder, text_encoder_2."""
    return part if number == 1 else f"{part}_{number}"


def places(folder: Path, number: int = 1, key: str = KEY) -> tuple[Path, Path]:
    """The folders of tokenizer and network: FOLDER/tokenizer and FOLDER/text_encoder as in diffusers, with a
    suffix _2 or _3 for the others, or FOLDER itself. Raises UserError if a file is missing."""
    names = folder_name("tokenizer", number), folder_name("text_encoder", number)
    has_parts = number > 1 or (folder / names[1]).is_dir()
    tokenizer, network = (folder / names[0], folder / names[1]) if has_parts else (folder, folder)
    weights = [network / name for name in (*WEIGHTS, *HALVES) if (network / name).is_file()] or [network / WEIGHTS[0]]
    wanted = [network / "config.json", weights[0], tokenizer / "tokenizer_config.json"]
    if missing := [file for file in wanted if not file.is_file()]:
        raise UserError(
            f"{key}={folder} has no {missing[0].relative_to(folder)}; give a local folder with {names[0]}/ and "
            f"{names[1]}/ (weights as safetensors), as in a diffusers pipeline, or a hub id"
        )
    return tokenizer, network


def variant_of(network: Path) -> str | None:
    """ "fp16" if the folder of a network has only such weights; None if it has files without a variant."""
    return None if any((network / name).is_file() for name in WEIGHTS) else "fp16"


def patterns(numbers: Sequence[int]) -> list[str]:
    """Patterns for the files of these text encoders in a repository. For the first one they also match a repository
    that is not a pipeline."""
    found = ["config.json", *WEIGHTS, "model-*.safetensors", *OF_TOKENIZERS] if 1 in numbers else []
    for number in numbers:
        network = folder_name("text_encoder", number)
        found += [f"{folder_name('tokenizer', number)}/*", f"{network}/config.json"]
        found += [f"{network}/model*.safetensors*"]
    return found


def local_folder(model: str, numbers: Sequence[int], key: str = KEY) -> Path:
    """The local folder. For a hub id the files are fetched, or taken from the hub's cache. Raises UserError if they
    cannot be fetched."""
    if not is_hub_id(model):
        return Path(model)
    from huggingface_hub import snapshot_download

    name, revision = resolve(model)
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns(numbers)))
    except (OSError, ValueError) as error:  # the hub's own errors are subclasses of these
        reason = download_failure(error, model)
        raise UserError(f"{key}={model} could not be loaded ({reason}); or give a local folder") from error


def known_config(model: str, number: int) -> dict[str, Any] | None:
    """The config.json of one of a pipeline's text encoders, in a local folder or in the hub's cache; None if it is in
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
    """The base class of text encoders that are read from a folder or a hub id."""

    model: str

    @property
    def numbers(self) -> tuple[int, ...]:
        """The numbers of the pipeline's text encoders that are used."""
        return (1,)

    def check(self) -> None:
        """No check: sizes are compared when the network is loaded."""

    def check_files(self) -> None:
        if not is_hub_id(self.model):
            for number in self.numbers:
                places(Path(self.model), number)

    def hub_files(self) -> dict[str, list[str]]:
        return {self.model: patterns(self.numbers)} if is_hub_id(self.model) else {}

    @property
    def name(self) -> str:
        """The model's name in stores and manifests."""
        return stored_name(self.model)
