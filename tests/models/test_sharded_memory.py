"""Weights are read tensor by tensor, from shards or from one file. A process of its own measures the memory that this
takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

MIB = 2**20
SHARD = 32 * MIB
MODEL = {"num_layers": 2, "num_attention_heads": 16, "pos_embed_max_size": 16, "caption_projection_dim": 1024}
# prints the growth of resident memory, in bytes, at its peak and at the end, and the number of values read
MEASURE = """
import json, sys
from pathlib import Path
import diffusers, torch
from urepa.models.diffusers_weights import ModuleKind, read_folder

diffusers.SD3Transformer2DModel  # imported before memory is measured
kind = ModuleKind("SD3Transformer2DModel", "transformer", "transformer", lambda config, where: None)

def kib(name):
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1])

Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
before = kib("VmRSS:")
module = read_folder(Path(sys.argv[1]), kind, getattr(torch, sys.argv[2]))
grown = {name: 1024 * (kib(name) - before) for name in ("VmHWM:", "VmRSS:")}
print(json.dumps(grown | {"values": sum(p.numel() for p in module.parameters())}))
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same 300 MiB in shards of 32 MiB and in one file."""
    from diffusers import SD3Transformer2DModel

    root = tmp_path_factory.mktemp("shards")
    module = SD3Transformer2DModel(**MODEL)
    for name, most in (("shards", SHARD), ("whole", 2**40)):
        module.save_pretrained(root / name, max_shard_size=most)
    return {name: root / name for name in ("shards", "whole")}


def grown(folder: Path, dtype: torch.dtype) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder), str(dtype).removeprefix("torch.")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "dtype", "most"),
    [("shards", torch.float32, 1.2), ("whole", torch.float32, 1.2), ("shards", torch.bfloat16, 0.7)],
)
def test_reading_weights_takes_little_more_memory_than_they_have(
    folders: dict[str, Path], layout: str, dtype: torch.dtype, most: float
) -> None:
    """At most `most` times the size of the files, which have fp32 values."""
    files = list(folders[layout].glob("*.safetensors"))
    size = sum(file.stat().st_size for file in files)
    assert size > 256 * MIB
    assert len(files) > 8 if layout == "shards" else len(files) == 1
    found = grown(folders[layout], dtype)
    assert found["values"] * dtype.itemsize < found["VmRSS:"] <= found["VmHWM:"] <= most * size, found
