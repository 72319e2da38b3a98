"""`python -m urepa.prefetch +experiment=...`: downloads the files that an experiment needs, on a node with internet, so
that jobs run with HF_HUB_OFFLINE=1. Records the revisions and the files' digests, and checks later calls against them.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from urepa.cli import CONF, prepare, run_command
from urepa.config.declared import declaration_of
from urepa.core.backbone_protocols import Backbone
from urepa.core.errors import UserError
from urepa.core.files import read_json, write_whole
from urepa.core.hub_names import download_failure, is_hub_id, resolve
from urepa.core.nested_dicts import flatten
from urepa.core.one_line_errors import one_line_mistakes
from urepa.core.protocols import Teacher
from urepa.core.text_protocols import TextEncoder
from urepa.core.track_protocols import Track
from urepa.runs.run_folder import remove_empty, to_plain

RECORD = Path("prefetch.json")
OF_AN_EVALUATION = ["config.json", "model.safetensors", "vocab.json", "merges.txt", "tokenizer*"]  # encoder or CLIP


@hydra.main(config_path=CONF, config_name="prefetch", version_base="1.3")
def main(config: DictConfig) -> None:
    """Downloads weights, and the data set if it comes from the hub."""
    from hydra.core.hydra_config import HydraConfig

    remove_empty(Path(HydraConfig.get().runtime.output_dir))  # created by Hydra for a run
    with one_line_mistakes():
        parts = to_plain(config)
        record: dict[str, Any] = read_json(RECORD) if RECORD.exists() else {}
        for name, patterns in required_files(parts).items():
            found = fetch(name, patterns)
            known = record.get(name)
            if known is not None and known["files"].items() - found["files"].items():
                raise UserError(
                    f"{name} is not what {RECORD} says it was (revision {known['revision']} then, {found['revision']} "
                    f"now); pin the old one as {name.partition('@')[0]}@{known['revision']}, or delete {RECORD}"
                )
            record[name] = found
            write_whole(RECORD, json.dumps(record, indent=1))
            print(f"{name}: {len(found['files'])} files; pinned: {name.partition('@')[0]}@{found['revision']}")
        track: Track = declaration_of(parts["data"])
        if track.source == "hub":
            from urepa.data.sources.image_sources import SOURCES

            rows = sum(1 for _ in SOURCES["hub"](track.images))
            print(f"{track.images}: {rows} images")
        print("jobs may now run with HF_HUB_OFFLINE=1")


def required_files(parts: dict[str, Any]) -> dict[str, list[str]]:
    """The hub repositories in the config, with the files that are read from each."""
    names: dict[str, list[str]] = {}
    backbone: Backbone = declaration_of(parts["backbone"])
    track: Track = declaration_of(parts["data"])
    teacher: Teacher = declaration_of(parts["teacher"])
    encoder: TextEncoder | None = getattr(track, "text_encoder", None)
    files = [backbone.hub_files(), track.hub_files(), teacher.hub_files()]
    for of_part in [*files, {} if encoder is None else encoder.hub_files()]:
        for name, patterns in of_part.items():
            names.setdefault(name, []).extend(patterns)
    for key, name in flatten(parts["evaluation"]).items():
        if key.endswith(".model") and is_hub_id(name):
            names.setdefault(name, []).extend(OF_AN_EVALUATION)
    return names


def fetch(name: str, patterns: list[str]) -> dict[str, Any]:
    """Downloads the files into the hub's cache. Returns their revision and SHA-256."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    repository, revision = resolve(name)
    try:
        folder = Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, OSError) as error:
        raise UserError(f"{repository} could not be fetched: {download_failure(error, name)}") from error
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    digests = {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
    return {"revision": folder.name, "files": digests}


if __name__ == "__main__":
    prepare()
    run_command(main, "prefetch")
