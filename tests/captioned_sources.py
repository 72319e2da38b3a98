"""The photographs and captions of `captioned.write_captioned` as parquet files, as tar shards, and on a local server
that replaces the hub."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from captioned import KINDS

REVISION = "ab" * 20
Rows = list[tuple[str, bytes, list[str], int]]  # name, encoded image, captions, class


def rows_of(folder: Path) -> Rows:
    """The images and captions of such a folder, in the order of the classes' names."""
    rows = []
    for class_id, kind in enumerate(sorted(KINDS)):
        for file in sorted((folder / kind).glob("*.png")):
            captions = file.with_suffix(".txt").read_text().splitlines()
            rows.append((f"{kind}{file.stem}", file.read_bytes(), captions, class_id))
    return rows


def write_parquet(
    file: Path, rows: Rows, column: str = "captions", *, labels: bool = True, plain: bool = False
) -> Path:
    """Writes one file with the columns image, `column` and, if `labels` is set, label. Images are bytes if `plain` is
    set; captions are lists."""
    import pyarrow as pa
    from pyarrow.parquet import write_table

    file.parent.mkdir(parents=True, exist_ok=True)
    images: list[Any] = [image if plain else {"bytes": image, "path": None} for _, image, _, _ in rows]
    columns: dict[str, Any] = {"image": images, column: [captions for _, _, captions, _ in rows]}
    if labels:
        columns["label"] = [class_id for _, _, _, class_id in rows]
    write_table(pa.table(columns), file)
    return file


def write_tar(file: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    """Writes a shard with these members, in their order."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file


def members_of(rows: Rows, *, labels: bool = True, as_json: bool = False) -> list[tuple[str, bytes]]:
    """The members of samples: KEY.png, KEY.txt (or KEY.json) and, if `labels` is set, KEY.cls."""
    members = []
    for name, image, captions, class_id in rows:
        members.append((f"{name}.png", image))
        text = json.dumps({"caption": captions}) if as_json else "\n".join(captions)
        members.append((f"{name}.{'json' if as_json else 'txt'}", text.encode()))
        if labels:
            members.append((f"{name}.cls", str(class_id).encode()))
    return members


@contextmanager
def serve_hub(files: dict[str, Path], name: str = "owner/captioned") -> Iterator[str]:
    """The address of a server with one data set, whose files are given by their path in it."""
    contents = {place: file.read_bytes() for place, file in files.items()}

    entries = [
        {"type": "file", "path": place, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
        for place, content in contents.items()
    ]
    about = {"id": name, "sha": REVISION, "siblings": [{"rfilename": place} for place in contents], "tags": []}
    known = {f"/api/datasets/{name}{ending}": about for ending in ("", f"/revision/{REVISION}", "/revision/main")}

    class Hub(BaseHTTPRequestHandler):
        def _send(self, status: int, content: bytes, **headers: str) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            place = path.partition(f"/resolve/{REVISION}/")[2]
            if place in contents:
                tag = hashlib.sha1(contents[place]).hexdigest()
                self._send(200, contents[place], ETag=f'"{tag}"', X_Repo_Commit=REVISION)
            elif path in known:
                self._send(200, json.dumps(known[path]).encode(), Content_Type="application/json")
            elif path == f"/api/datasets/{name}/tree/{REVISION}":  # all files lie there
                self._send(200, json.dumps(entries).encode(), Content_Type="application/json")
            else:
                self._send(404, b"", X_Error_Code="EntryNotFound" if name in path else "RepoNotFound")

        do_HEAD = do_GET

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
