"""`python -m urepa.look`: the pictures of training, made again from a checkpoint."""

from __future__ import annotations

import io

from PIL import Image
from workspace import Workspace, ended, one_line_error

from urepa.core import look_sheets


def test_a_checkpoint_gives_the_pictures_of_training(work: Workspace) -> None:
    often = (
        "trainer.look_every=3",
        "trainer.look_share=1000",
        "trainer.max_steps=6",
        "trainer.keep_last=9",
        "tracking=none",
    )
    work.train(*often)
    folder = work.run / "look"
    made = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert sorted(made) == ["step_00000003.png", "step_00000006.png"]
    for file in folder.iterdir():
        file.unlink()
    run = f"run={work.run.relative_to(work.folder)}"
    done = ended(["-m", "urepa.look", run, "step=all"], work.folder)
    assert done.returncode == 0, done.stderr
    assert {name: (folder / name).read_bytes() for name in made} == made
    strip = Image.open(folder / "strip.png")
    sheet = look_sheets.cells_of(Image.open(io.BytesIO(made["step_00000003.png"])))
    assert strip.width > 3 * sheet["head"][0].width
    done = ended(["-m", "urepa.look", run, "step=3", "images=2", "patch=[0,0]", "sampler_steps=2"], work.folder)
    assert done.returncode == 0, done.stderr
    (other,) = [file for file in folder.iterdir() if "," in file.name]
    assert other.name.startswith("step_00000003,images=2")
    assert len(look_sheets.cells_of(Image.open(other))["sample"]) == 2
    wrong = ended(["-m", "urepa.look", run, "step=5"], work.folder)
    assert wrong.returncode == 1
    text = one_line_error(wrong)
    assert text.startswith("step=5: ")
    assert text.endswith("; give one of these, all or newest")
