"""A summary records which weights were at the paths that an evaluation's settings name."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors.torch import save_file

from urepa.evaluation.classifier_file import as_metadata
from urepa.evaluation.encoder_weights import with_digests


def test_digests_are_recorded_with_paths(tmp_path: Path) -> None:
    cnn, inception = tmp_path / "cnn.safetensors", tmp_path / "inception.pth"
    save_file({"a": torch.zeros(3)}, cnn, metadata=as_metadata({"accuracy": 0.7031}))
    inception.write_bytes(b"weights")
    encoders = {
        "cifar_cnn": {"_target_": "x", "weights": str(cnn)},
        "inception": {"weights": str(inception)},
        "gone": {"weights": str(tmp_path / "gone")},
        "pixels": {"grid": 8},
    }
    settings = {"generation": {"subset": 5, "encoders": encoders}, "inception_score": {"encoder": {"weights": None}}}
    found = with_digests(settings)
    told = found["generation"]["encoders"]
    assert told["cifar_cnn"]["weights_file"] == {
        "sha256": hashlib.sha256(cnn.read_bytes()).hexdigest(),
        "accuracy": "0.7031",
    }
    assert told["inception"]["weights_file"] == {"sha256": hashlib.sha256(b"weights").hexdigest()}
    assert (told["gone"], told["pixels"]) == (encoders["gone"], encoders["pixels"])
    assert found["inception_score"] == settings["inception_score"]
    assert "weights_file" not in encoders["cifar_cnn"], "the config itself stays as it is"
