"""Whether two commits compute the same. Both run every scene, one after the other in the same folder on one machine:

    python tests/house/record.py COMMIT OTHER --place DIR [--scenes quickstart,sit]

prints the differences of each scene, and ends with exit code 1 if there are any. Given the same commit twice, it shows
what the comparison itself tolerates.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from alike import differences
from scenes import MISTAKES, SCENES, WIDTH

ROOT = Path(__file__).parents[2]
PROGRESS = re.compile(r"[^\r\n]*\d+%\|[^\r\n]*\]|\r|\x1b\[A|^\s+$", re.MULTILINE)
VARIABLES = ("MLFLOW_", "HYDRA_", "OMP_", "SLURM_", "RANK", "WORLD_SIZE", "LOCAL_RANK", "UREPA_")


def write_material(folder: Path) -> None:
    """Writes photographs and small random networks in the real formats, once for both."""
    sys.path.insert(0, str(ROOT / "tests"))
    sys.path.insert(0, str(ROOT))
    from photos import TRAIN, VAL, write_dinov2, write_photos, write_sd

    folder.mkdir(parents=True)
    write_photos(folder / "photos", TRAIN, VAL)
    write_sd(folder / "sd")
    write_dinov2(folder / "dino", width=WIDTH)
    (folder / "names.txt").write_text("china\nflower\n")
    shutil.copytree(ROOT / "results" / "positions", folder / "positions")  # their times are always the same


def checkout(commit: str, place: Path, which: int) -> Path:
    """A separate worktree for each of the two, also if both are of one commit."""
    folder = place / f"code_{which}_{commit}"
    if not folder.exists():
        git("worktree", "add", "--detach", str(folder), commit)
    return folder


def git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def play(scene: str, code: Path, place: Path) -> None:
    """Runs a scene's commands with the code of a checkout; their output is in said/."""
    here = place / "now"
    here.mkdir(parents=True)
    (here / "said").mkdir()
    kept = {k: v for k, v in os.environ.items() if not k.startswith(VARIABLES)}
    environment = kept | {"PYTHONPATH": str(code), "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    for number, command in enumerate(SCENES[scene]):
        runs = sorted(here.glob("outputs/*/seed*"), key=lambda run: (run / "config.yaml").stat().st_mtime)
        run = runs[0] if runs else here
        words = [w.replace("{run}", str(run.relative_to(here))) for w in command]
        words = [w.replace("{material}", str(place / "material")) for w in words]
        done = subprocess.run(
            [sys.executable, "-m", *words], cwd=here, env=environment, capture_output=True, text=True, check=False
        )
        told = PROGRESS.sub("", done.stderr).replace(str(code), "CODE")
        (here / "said" / f"{number}.txt").write_text(
            f"{command[0]} ends with {done.returncode}\n{done.stdout}\n{told}\n"
        )
        if (done.returncode != 0) != (scene == MISTAKES):
            sys.exit(f"{scene}: {' '.join(words)} ends with {done.returncode}\n{told[-2000:]}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commits", nargs=2)
    parser.add_argument("--place", type=Path, required=True)
    parser.add_argument("--scenes", default=",".join(SCENES))
    asked = parser.parse_args()
    place = asked.place.resolve()
    if not (place / "material").exists():
        write_material(place / "material")
    codes = [checkout(git("rev-parse", "--short", commit), place, i) for i, commit in enumerate(asked.commits)]
    alike = True
    for scene in asked.scenes.split(","):
        folders = []
        for which, code in enumerate(codes):
            for old in (place / "now", place / f"{scene}_{which}"):
                shutil.rmtree(old, ignore_errors=True)
            play(scene, code, place)
            folders.append((place / "now").rename(place / f"{scene}_{which}"))
        found = list(differences(*folders))
        alike &= not found
        print(f"{scene}: {'identical' if not found else f'{len(found)} differences'}")
        print("\n".join(f"  {line}" for line in found[:20]), flush=True)
    return 0 if alike else 1


if __name__ == "__main__":
    sys.exit(main())
