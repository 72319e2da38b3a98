"""The frozen weights of an earlier run with which a loss evaluates the backbone (`loss.guide`).

FOLDER/guide.json records them when a run begins, with their digest, so that it resumes with the same.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from urepa.core.errors import UserError
from urepa.core.files import read_json, write_whole
from urepa.method.training_step import AlignedModel
from urepa.models.weight_files import trainable
from urepa.training import warm_start
from urepa.training.warm_start_record import in_words

FILE = "guide.json"
SHOWN = 3  # names in a message


def earlier_weights(model: AlignedModel, source: str, folder: Path, device: torch.device) -> dict[str, Tensor]:
    """The weights of the newest checkpoint of a run, or of a file, for every weight of the backbone that trains, by its
    name in the model. Raises UserError if they are of another backbone, or others than when the run in `folder` began.
    """
    now, record = warm_start.find(source), folder / FILE
    if record.exists():
        before = read_json(record)
        if before["sha256"] != now["sha256"]:
            raise UserError(
                f"{folder} began with other weights of loss.guide={source} ({in_words(before)}; now {in_words(now)}); "
                "start a new run, with the file of those weights as loss.guide if it is still there"
            )
    else:
        write_whole(record, json.dumps(now))
    found = warm_start.read_weights(Path(now["file"]), now["sha256"])
    own = {name: p for name, p in trainable(model).items() if name.startswith("backbone.")}
    odd = sorted(name for name, p in own.items() if name not in found or found[name].shape != p.shape)
    odd += sorted(name for name in found.keys() - own.keys() if name.startswith("backbone."))
    if odd:
        raise UserError(
            f"loss.guide={source} is of another backbone ({', '.join(odd[:SHOWN])}): give a run with the same "
            "backbone, lora and data (channels, classes)"
        )
    return {name: found[name].to(device, own[name].dtype) for name in own}
