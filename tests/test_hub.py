"""The messages about a gated, a missing and an unreachable repository, whichever library requested it. The clients are
the real ones; a local server replaces the hub, which this machine cannot reach."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from families import write_family

pytestmark = pytest.mark.long

# every place that asks the hub for something; prints what each says
ASK = """
import json, pathlib, sys
from urepa.models.unet_weights import unet_from_hub
from urepa.data.stages.encode import vae_encoder, write_prompts
from urepa.data.sources.image_sources import SOURCES
from urepa.core.errors import UserError
from urepa.prefetch import fetch
from urepa.models.teachers.vit_net import ViTNetwork
said = {}
def asked(what, ask):
    try:
        ask()
    except UserError as error:
        said[what] = str(error)
for name in sys.argv[1:]:
    asked(f"{name} images", lambda: list(SOURCES["hub"](name)))
    asked(f"{name} teacher", lambda: ViTNetwork("dinov3", name, 64, 16, [4, 4], 32).network)
    asked(f"{name} vae", lambda: vae_encoder(name, moments=False))
    asked(f"{name} text", lambda: write_prompts(pathlib.Path("no"), name, []))
    asked(f"{name} backbone", lambda: unet_from_hub(name, "sd15"))
    asked(f"{name} prefetch", lambda: fetch(name, ["config.json"]))
print(json.dumps(said))
"""


class Refusing(BaseHTTPRequestHandler):
    """Answers like the hub when it refuses a request."""

    def do_HEAD(self) -> None:
        gated = "gated" in self.path
        asks = 403 if self.headers.get("Authorization") else 401
        self.send_response(asks if gated else 404)
        self.send_header("X-Error-Code", "GatedRepo" if gated else "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST = do_HEAD

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def run(arguments: list[str], home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    given = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | {"HF_HOME": str(home)} | environment
    return subprocess.run([sys.executable, *arguments], cwd=home, env=given, capture_output=True, text=True)


def says(home: Path, *names: str, **environment: str) -> dict[str, str]:
    done = run(["-c", ASK, *names], home, **environment)
    assert done.returncode == 0, done.stderr[-2000:]
    said: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    assert len(said) == 6 * len(names)
    return said


@pytest.mark.slow
def test_the_message_on_a_gated_repository_names_its_licence_page_and_the_login(hub: str, tmp_path: Path) -> None:
    said = says(tmp_path, "owner/gated", "owner/gone", HF_ENDPOINT=hub, HF_TOKEN="hf_nobody")
    for what, text in said.items():
        page = "https://huggingface.co/" + "datasets/" * what.endswith("images") + "owner/gated,"
        words = [f"accept its licence on {page}", "hf auth login"] if "gated" in what else ["no such repository"]
        assert all(word in text for word in words), (what, text)


@pytest.mark.slow
def test_with_the_hub_switched_off_the_message_says_what_to_run_elsewhere(hub: str, tmp_path: Path) -> None:
    for what, text in says(tmp_path, "owner/name", HF_ENDPOINT=hub, HF_HUB_OFFLINE="1").items():
        assert "HF_HUB_OFFLINE is set" in text, what
        assert "run `python -m urepa.prefetch` with the same overrides where there is internet" in text, what


@pytest.mark.slow
def test_a_gated_data_set_ends_a_command_in_one_line(hub: str, tmp_path: Path) -> None:
    command = ["-m", "urepa.preprocess", "data=cifar10", "data.images=owner/gated", f"data.root={tmp_path}"]
    done = run(command, tmp_path, HF_ENDPOINT=hub)
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: data.images=owner/gated could not be fetched from the hub (it is gated: accept its")
    assert line.endswith("with the images on disk, give data.source=folder data.images=FOLDER")


@pytest.mark.slow
def test_a_vae_may_be_a_repository_of_its_own_or_a_part_of_a_pipelines(tmp_path: Path) -> None:
    """In the hub's own cache, as a download leaves it."""
    from diffusers import AutoencoderKL

    revision = "ab" * 20
    vae = AutoencoderKL(norm_num_groups=4, block_out_channels=(8,))
    for name, place in (("own", "."), ("pipeline", "vae")):
        repository = tmp_path / "hub" / f"models--owner--{name}"
        vae.save_pretrained(repository / "snapshots" / revision / place)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(revision)
    ask = "from urepa.data.stages.vae import load_vae as f; "
    ask += "print([len(f('owner/' + n).encoder.down_blocks) for n in ('own', 'pipeline')])"
    done = run(["-c", ask], tmp_path, HF_HUB_OFFLINE="1")
    assert done.stdout.strip() == "[1, 1]", done.stderr[-2000:]


@pytest.mark.slow
def test_a_unet_of_the_hubs_cache_is_read_and_another_familys_is_refused(tmp_path: Path) -> None:
    """As a download leaves it; and if the download was interrupted before the weights."""
    revision = "ab" * 20
    for name in ("whole", "cut"):
        repository = tmp_path / "hub" / f"models--owner--{name}"
        write_family(repository / "snapshots" / revision, "sdxl")
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(revision)
    next((tmp_path / "hub" / "models--owner--cut").rglob("*.safetensors")).unlink()
    ask = "import torch\nfrom urepa.models.unet_weights import unet_from_hub as f\n"
    ask += "from urepa.core.errors import UserError\n"
    ask += "print(f('owner/whole', 'sdxl', torch.bfloat16).conv_in.weight.dtype)"
    for name, family in (("whole", "sd15"), ("cut", "sdxl")):
        ask += f"\ntry: f('owner/{name}', '{family}')\nexcept UserError as error: print(error)"
    done = run(["-c", ask], tmp_path, HF_HUB_OFFLINE="1")
    dtype, refused, cut = done.stdout.strip().splitlines()
    assert dtype == "torch.bfloat16", done.stderr[-2000:]
    assert refused.startswith(
        "owner/whole is a U-Net with added conditions (text_time), as SDXL's is; backbone=sd15 or"
    )
    assert "diffusion_pytorch_model.safetensors is not in the hub's local cache, or not in the repository; run " in cut
