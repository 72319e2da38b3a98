"""`urepa.export push=OWNER/NAME` against a server that takes uploads as the hub does. The client is the real one."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from forks import environment
from workspace import Workspace, one_line_error

from urepa.core.errors import UserError
from urepa.export import check
from urepa.inference.push_export import push

NAME = "someone/aligned"
TOKEN = "hf_of_a_test"


class Hub(ThreadingHTTPServer):
    """Repositories by name, each with `private` and the files of its commits; `fails` answers commits with an error."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.repositories: dict[str, dict[str, Any]] = {}
        self.blobs: dict[str, bytes] = {}
        self.tokens: set[str | None] = set()
        self.fails = False

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        found = self.server.repositories.get(self.path.removeprefix("/api/models/"))
        if found is None:
            self.answer({"error": "Repository not found"}, 404, "RepoNotFound")
        else:
            self.answer({"id": NAME, "private": found["private"]})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            is_private = asked.get("private", asked.get("visibility") == "private")
            self.server.repositories[name] = {"private": bool(is_private), "files": {}}
            self.answer({"url": f"{self.server.address}/{name}", "id": name, "name": name})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            modes = {True: "lfs", False: "regular"}
            found = [
                {"path": f["path"], "shouldIgnore": False, "uploadMode": modes[f["path"].endswith("safetensors")]}
                for f in files
            ]
            self.answer({"files": found})
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                o | {"actions": {"upload": {"href": f"{self.server.address}/blob/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]
            self.answer({"transfer": "basic", "objects": objects})
        elif "/commit/" in self.path and self.server.fails:
            self.answer({"error": "you may not write here"}, 403)
        else:
            self.server.tokens.add(self.headers.get("Authorization"))
            self.commit(body)

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.blobs[self.path.rpartition("/")[2]] = body
        self.answer({})

    def commit(self, body: bytes) -> None:
        files = self.server.repositories[NAME]["files"]
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
        self.answer({"commitUrl": f"{self.server.address}/{NAME}/commit/1", "commitOid": "1" * 40, "success": True})

    def answer(self, value: dict[str, Any], status: int = 200, code: str = "") -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def export(work: Workspace, hub: Hub, *overrides: str) -> subprocess.CompletedProcess[str]:
    run = f"run={work.run.relative_to(work.folder)}"
    here = {"HF_ENDPOINT": hub.address, "HF_HOME": str(work.folder / "hf"), "HF_HUB_DISABLE_XET": "1"}
    env = {k: v for k, v in environment().items() if not k.startswith("HF_")} | here | {"HF_TOKEN": TOKEN}
    command = [sys.executable, "-m", "urepa.export", run, *overrides]
    return subprocess.run(command, cwd=work.folder, env=env, capture_output=True, text=True)


def digests(folder: Path) -> dict[str, str]:
    files = [p for p in folder.rglob("*") if p.is_file()]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_an_upload_that_fails_is_repeated_by_the_same_command(copied: Workspace, hub: Hub) -> None:
    hub.fails = True
    failed = export(copied, hub, f"push={NAME}")
    assert failed.returncode == 1
    said = one_line_error(failed)
    (folder,) = (copied.run / "export").iterdir()
    assert said.startswith(f"the export is whole in {folder.relative_to(copied.folder)}, but it could not be uploaded")
    assert said.endswith("; the same command uploads it again")
    whole = digests(folder)
    assert {"README.md", "config.yaml", "heads.safetensors"} <= whole.keys()

    (folder / "notes.txt").write_text("not for others")
    hub.fails = False
    done = export(copied, hub, f"push={NAME}")
    assert done.returncode == 0, done.stderr
    assert f"uploaded to {hub.address}/{NAME}" in done.stdout
    assert "not uploaded, as the export does not list them: notes.txt" in done.stdout
    repository = hub.repositories[NAME]
    assert repository["private"] is True
    assert {k: hashlib.sha256(v).hexdigest() for k, v in repository["files"].items()} == whole
    assert hub.tokens == {f"Bearer {TOKEN}"}


def test_a_repository_of_another_visibility_is_refused(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.address)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    (tmp_path / "config.yaml").write_text("a: 1")
    (tmp_path / "README.md").write_text("# card\n\n## Files\n\n- config.yaml\n- README.md\n\n## Metrics\n")
    for is_private, text in ((True, "private: give private=true"), (False, "public: give private=false")):
        hub.repositories[NAME] = {"private": is_private, "files": {}}
        with pytest.raises(UserError, match=f"^{NAME} is on the hub already and is {text} to upload there"):
            push(tmp_path, NAME, private=not is_private)
        assert hub.repositories[NAME]["files"] == {}
    assert push(tmp_path, NAME, private=False) == f"{hub.address}/{NAME}"
    assert hub.repositories[NAME]["files"].keys() == {"config.yaml", "README.md"}
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"has 1 of the 2 files that its README.md lists; export it anew"):
        push(tmp_path, NAME, private=False)


def test_mistakes_are_found_before_anything_is_exported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def asked(**changes: Any) -> dict[str, Any]:
        return {"run": str(tmp_path), "out": None, "push": NAME, "private": True} | changes

    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(UserError, match=r"push=aligned: give the repository as OWNER/NAME"):
        check(asked(push="aligned"))
    with pytest.raises(UserError, match=r"push= needs a login with write access to the hub: run `hf auth login` first"):
        check(asked())
    with pytest.raises(UserError, match=r"private=false has no effect without push=OWNER/NAME; give that too"):
        check(asked(push=None, private=False))
