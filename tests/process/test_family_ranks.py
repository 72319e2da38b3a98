"""Two gloo processes compute the gradients of one, for the small network of each family of transformers and captioned
U-Nets."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from family_gradients import STEPS
from flat_photos import write_flat
from safetensors.torch import load_file
from smoke_families import BACKBONES, overrides
from workspace import HANGS, Workspace, ended

SCRIPT = str(Path(__file__).with_name("family_gradients.py"))


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one(work: Workspace) -> None:
    write_flat(work.folder / "photos" / "scenes", 6)
    given = overrides(work.folder / "photos", work.folder / "caches")
    files = [work.folder / name / "gradients.safetensors" for name in ("one", "two")]
    for file in files:
        file.parent.mkdir()
    one, two = ([SCRIPT, str(file), ",".join(BACKBONES), *given] for file in files)
    done = ended(one, work.folder, HANGS)
    assert done.returncode == 0, done.stderr
    done = work.in_ranks(two, 2)
    assert done.returncode == 0, done.stderr
    theirs, ours = map(load_file, files)
    assert ours.keys() == theirs.keys()
    for backbone in BACKBONES:
        for step in range(STEPS):
            own = [key for key in theirs if key.startswith(f"{backbone}/{step}/")]
            whole = torch.cat([theirs[key].flatten() for key in own]).norm()
            assert whole > 0
            worst = max(float((ours[key] - theirs[key]).norm() / whole) for key in own)
            assert worst < 1e-5, (backbone, step, worst)
