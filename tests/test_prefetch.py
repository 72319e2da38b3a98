"""The files that an experiment needs are downloaded once, recorded and then used; here from a local stand-in for the
hub.

The client is huggingface_hub itself; a local server replaces the hub, which this machine cannot reach.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from photos import write_clip_text, write_dinov2

from urepa.core.hub_names import is_hub_id, resolve
from urepa.prefetch import required_files

COMMIT = "c" * 40


def test_names_and_revisions(tmp_path: Path) -> None:
    assert resolve("a/b") == ("a/b", "main")
    assert resolve("a/b@1234") == ("a/b", "1234")
    assert resolve("runwayml/stable-diffusion-v1-5@x") == ("stable-diffusion-v1-5/stable-diffusion-v1-5", "x")
    assert resolve(str(tmp_path)) == (str(tmp_path), "main")
    assert is_hub_id("facebook/dinov2-large")
    assert not any(is_hub_id(n) for n in (str(tmp_path), "random", "./a/b", "/no/such"))


@pytest.mark.slow
def test_one_file_of_a_repository_is_fetched_alone(compose: Callable[..., dict[str, Any]]) -> None:
    repa = ("+experiment=repa_cifar10_pixels", "evaluation=none")
    assert required_files(compose(*repa, "backbone.weights=owner/name/sit/xl.pt")) == {"owner/name@main": ["sit/xl.pt"]}
    assert required_files(compose(*repa, "backbone.weights=owner/name@v1/xl.pt")) == {"owner/name@v1": ["xl.pt"]}
    assert required_files(compose(*repa, "backbone.weights=./sit/xl/weights.pt")) == {}


def test_what_evaluations_load_is_fetched_too(compose: Callable[..., dict[str, Any]]) -> None:
    encoder = "+teacher@evaluation.generation.encoders.dinov2_b=dinov2_b"
    names = required_files(compose("evaluation=generation", encoder)) | required_files(compose("evaluation=clip_score"))
    assert names.keys() == {"facebook/dinov2-base", "openai/clip-vit-large-patch14"}
    assert {"config.json", "model.safetensors", "vocab.json", "merges.txt"} <= set(
        names["openai/clip-vit-large-patch14"]
    )


def test_text_encoders_are_fetched_too(compose: Callable[..., dict[str, Any]]) -> None:
    """Only those on the hub."""
    captions = ["data=captions", "backbone=text_unet", "data.images=photos", "data.num_classes=2"]
    assert not required_files(compose(*captions)).keys() & {"owner/sdxl@v1"}
    of_sdxl = [*captions, "text_encoder@data.text_encoder=sdxl", "data.text_encoder.model=owner/sdxl@v1"]
    files = required_files(compose(*of_sdxl))["owner/sdxl@v1"]
    assert {"tokenizer_2/*", "text_encoder_2/config.json", "text_encoder/model*.safetensors*"} <= set(files)


class Hub(BaseHTTPRequestHandler):
    """The part of the hub's interface that is needed: a repository's listing, and its files by revision."""

    repository = "facebook/dinov2-large"
    files: dict[str, bytes] = {}

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = self.path.split("?")[0]
        if path.startswith(f"/api/models/{self.repository}/revision/"):
            siblings = [{"rfilename": name} for name in self.files]
            data = json.dumps({"id": self.repository, "sha": COMMIT, "siblings": siblings}).encode()
            self.reply(data, "application/json", body)
            return
        if path.startswith(f"/api/models/{self.repository}/tree/"):
            listing = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha256(data).hexdigest()}
                for name, data in self.files.items()
            ]
            self.reply(json.dumps(listing).encode(), "application/json", body)
            return
        name = path.rpartition(f"/resolve/{COMMIT}/")[2]
        if path.startswith(f"/{self.repository}/resolve/") and name in self.files:
            self.reply(self.files[name], "application/octet-stream", body)
            return
        self.send_error(404)

    def reply(self, data: bytes, kind: str, body: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture(params=["facebook/dinov2-large"])
def hub(request: Any, tmp_path: Path) -> Iterator[str]:
    """A hub with one repository: a DINOv2, or a CLIP's pipeline under any other name."""
    Hub.repository = request.param
    write = write_dinov2 if "dinov2" in Hub.repository else write_clip_text
    folder = write(tmp_path / "repository")
    Hub.files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    Hub.files |= {"pytorch_model.bin": b"a pickle", "text_encoder/model.bin": b"another"}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def run(code: list[str], cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    given = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    given |= {"HF_HOME": str(cwd / "hf"), "HF_HUB_DISABLE_XET": "1"} | environment
    return subprocess.run([sys.executable, *code], cwd=cwd, env=given, capture_output=True, text=True)


@pytest.mark.slow
def test_what_was_fetched_loads_with_the_hub_switched_off(hub: str, tmp_path: Path) -> None:
    command = ["-m", "urepa.prefetch", "teacher=dinov2_l"]
    done = run(command, tmp_path, HF_ENDPOINT=hub)
    assert done.returncode == 0, done.stderr
    assert f"facebook/dinov2-large@{COMMIT}" in done.stdout
    record = json.loads((tmp_path / "prefetch.json").read_text())["facebook/dinov2-large"]
    assert record["revision"] == COMMIT
    assert set(record["files"]) == {"config.json", "model.safetensors"}  # and no pickle
    digest = hashlib.sha256(Hub.files["model.safetensors"]).hexdigest()
    assert record["files"]["model.safetensors"] == digest
    load = "import sys; from urepa.models.teachers.vit_net import ViTNetwork; "
    load += "print([ViTNetwork('dinov2', n, 56, 14, [4, 4], 32, 'meta').network is None for n in sys.argv[1:]])"
    names = ("facebook/dinov2-large", f"facebook/dinov2-large@{COMMIT}")
    offline = run(["-c", load, *names], tmp_path, HF_HUB_OFFLINE="1")
    assert offline.stdout.splitlines()[-1:] == ["[False, False]"], offline.stderr
    Hub.files["config.json"] += b" "
    changed = run(command, tmp_path, HF_ENDPOINT=hub, HF_HOME=str(tmp_path / "another"))
    assert changed.returncode == 1
    assert "is not what prefetch.json says it was" in changed.stderr


@pytest.mark.slow
@pytest.mark.parametrize("hub", ["owner/clip"], indirect=True)
def test_a_text_encoder_that_was_fetched_loads_with_the_hub_switched_off(hub: str, tmp_path: Path) -> None:
    """Only its folders, by its name and by its revision; for another one a line says what to do."""
    given = [
        "data=captions",
        "backbone=text_unet",
        "data.images=photos",
        "data.num_classes=2",
        "teacher=efficientnet_lite0",
    ]
    given = [*given, "text_encoder@data.text_encoder=clip", "data.text_encoder.model=owner/clip"]
    done = run(["-m", "urepa.prefetch", *given], tmp_path, HF_ENDPOINT=hub)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "prefetch.json").read_text())["owner/clip"]
    assert set(record["files"]) == {
        *("text_encoder/config.json", "text_encoder/model.safetensors"),
        *("tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer/tokenizer_config.json"),
    }
    load = "import sys\nfrom urepa.models.text_encoders.clip_text_net import clip_text\n"
    load += "for name in sys.argv[1:]:\n    print(clip_text(name, -1, 12, 16, True).tokenize(['a']).cut)"
    names = ("owner/clip", f"owner/clip@{COMMIT}", "owner/other")
    offline = run(["-c", load, *names], tmp_path, HF_HUB_OFFLINE="1")
    assert offline.stdout.split() == ["[0]", "[0]"], offline.stderr
    assert "HF_HUB_OFFLINE is set, and it is not in the hub's local cache: run `python -m urepa" in offline.stderr


@pytest.mark.slow
def test_without_a_hub_the_mistake_is_one_line(tmp_path: Path) -> None:
    done = run(["-m", "urepa.prefetch", "teacher=dinov2_l"], tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: facebook/dinov2-large could not be fetched")
    assert "http://127.0.0.1:9 cannot be reached" in done.stderr
    assert "Traceback" not in done.stderr
