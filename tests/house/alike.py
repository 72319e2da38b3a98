"""Whether two folders of files are the same: tensors, rows, records and pixels bit by bit, texts word by word, except
for times, rates, and the commit that wrote them."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import yaml
from PIL import Image
from safetensors import safe_open

Content = dict[str, Any]

# locks, times, and copies of a run's files under MLflow's random names
UNREAD = re.compile(r"(^|/)(mlruns/.*|\.[^/]*lock|lock\.mdb|\.lock|seconds\.json|jobs\.jsonl)$")
MADE = re.compile(r"-[0-9a-f]{16}(?=\.safetensors$)")  # features of real images are named by their cache, and its time
# keys of JSON, rows, configs and MLflow that differ between two runs of one code, or say where its parts lie; a
# checkpoint's sha256 covers times
TIMES = re.compile(
    r"time|seconds|clock|minutes|s/step|images_per_s|data_wait_share|memory|gpu/|^sha256$|"
    r"commit|code|version|run_id|experiment_id|artifact|mlflow\.|host|"
    r"^schema$|files\.config\.yaml|urepa\.schema"  # the form of a stored config
)
WORDS = (
    (re.compile(r"\b(?=\d*[a-f])(?=[a-f]*\d)[0-9a-f]{9,40}\b"), "DIGEST"),
    (re.compile(r"\d[\d.,]*\s?(images?/s|steps?/s|it/s|ms|seconds|minutes|min|s|h|GB|GiB|MiB|MB)\b"), "AMOUNT"),
    (re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d)?)?"), "DATE"),
    (re.compile(r"127\.0\.0\.1:\d+"), "ADDRESS"),
    (re.compile(r"(?<=_target)(\\?_)(:| \||\s*&|=)\s*urepa\.[\w.\\]*\.(?=\w)"), r"\1\2 "),  # where a class lies
    (re.compile(r"CODE/\S+\.py:\d+"), "CODE"),  # and a warning
    (re.compile(r"-p[0-9a-f]{10}(?=\W)"), "-CLIP"),  # Matplotlib's, of all digits of what is drawn
    (re.compile(r" {2,}"), "  "),  # columns are as wide as the amounts in them
)


def differences(one: Path, other: Path) -> Iterator[str]:
    """A line for each file that only one folder has, and for each part of a file that differs."""
    ours, theirs = (
        {
            MADE.sub("", str(p.relative_to(folder))): p
            for p in sorted(folder.rglob("*"))
            if p.is_file() and not UNREAD.search(str(p))
        }
        for folder in (one, other)
    )
    for name in sorted(ours.keys() ^ theirs.keys()):
        yield f"{name}: only in {one if name in ours else other}"
    for name in sorted(ours.keys() & theirs.keys()):
        a, b = content(ours[name]), content(theirs[name])
        for key in a.keys() | b.keys():
            if a.get(key) != b.get(key):
                yield f"{name}: {key}: {str(a.get(key))[:200]} | {str(b.get(key))[:200]}"


def content(file: Path) -> Content:
    """A file's content, in named parts."""
    reader = READERS.get("data.mdb" if file.name == "data.mdb" else file.suffix, _as_text)
    return reader(file)


def words(text: str) -> str:
    """A text without the words that differ between runs."""
    for pattern, instead in WORDS:
        text = pattern.sub(instead, text)
    return text


def plain(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values, without those about time and code; a class by its name alone, whatever its module."""
    if TIMES.search(key):
        return
    if isinstance(value, dict):
        for name, one in value.items():
            yield from plain(one, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for i, one in enumerate(value):
            yield from plain(one, f"{key}[{i}]")
    elif key.endswith("_target_"):
        yield key, str(value).rpartition(".")[2]
    else:
        yield key, words(value) if isinstance(value, str) else value


def _as_text(file: Path) -> Content:
    lines = file.read_bytes().decode(errors="replace").rstrip().splitlines()
    return {f"line {i}": words(line) for i, line in enumerate(lines, 1)}


def _as_json(file: Path) -> Content:
    """A report's numbers to twelve digits, because a library computes its statistics."""
    return dict(plain(json.loads(file.read_text(), parse_float=lambda digits: float(f"{float(digits):.12g}"))))


def _as_table(file: Path) -> Content:
    """As `_as_json`, for a table."""
    text = re.sub(r"-?\d+\.\d+(e[-+]?\d+)?", lambda number: f"{float(number[0]):.12g}", file.read_text())
    return {f"line {i}": words(line) for i, line in enumerate(text.splitlines(), 1)}


def _as_rows(file: Path) -> Content:
    return dict(plain([json.loads(line) for line in file.read_text().splitlines()]))


def _as_yaml(file: Path) -> Content:
    return dict(plain(yaml.safe_load(file.read_text())))


def _as_tensors(file: Path) -> Content:
    with safe_open(file, framework="np") as tensors:
        found: Content = {
            f"metadata {k}": words(v) for k, v in (tensors.metadata() or {}).items() if not TIMES.search(k)
        }
        for name in tensors.keys():  # noqa: SIM118  it is no dict
            found[name] = _array(tensors.get_tensor(name))
    return found


def _as_arrays(file: Path) -> Content:
    loaded = np.load(file, allow_pickle=False)
    arrays = dict(loaded) if hasattr(loaded, "files") else {"array": loaded}
    return {name: _array(array) for name, array in arrays.items()}


def _array(array: Any) -> tuple[str, tuple[int, ...], bytes]:
    return str(array.dtype), array.shape, array.tobytes()


def _as_records(file: Path) -> Content:
    with lmdb.open(str(file.parent), readonly=True, lock=False) as env, env.begin() as txn:
        return {key.hex(): bytes(value) for key, value in txn.cursor()}


def _as_pixels(file: Path) -> Content:
    with Image.open(file) as image:
        return {"pixels": (image.mode, image.size, image.tobytes())}


def _as_pdf(file: Path) -> Content:
    return {"PDF": re.sub(rb"/CreationDate \(.*?\)", b"", file.read_bytes())}


def _as_database(file: Path) -> Content:
    """MLflow's content: the runs by name, with their parameters, tags and metrics."""
    query = {
        "param": "SELECT r.name, p.key, p.value FROM params p JOIN runs r USING (run_uuid)",
        "tag": "SELECT r.name, t.key, t.value FROM tags t JOIN runs r USING (run_uuid)",
        "metric": "SELECT r.name, m.key || ' at ' || m.step, m.value FROM metrics m JOIN runs r USING (run_uuid)",
    }
    found: Content = {}
    with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as db:
        for kind, select in query.items():
            rows = db.execute(select).fetchall()
            for run, key, value in rows:
                found |= dict(plain(_of_json(value), f"{kind} {run} {key}")) if not TIMES.search(key) else {}
    return found


def _of_json(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) and value.startswith("{") else value


READERS: dict[str, Callable[[Path], Content]] = {
    ".json": _as_json,
    ".csv": _as_table,
    ".jsonl": _as_rows,
    ".yaml": _as_yaml,
    ".safetensors": _as_tensors,
    ".npy": _as_arrays,
    ".npz": _as_arrays,
    "data.mdb": _as_records,
    ".png": _as_pixels,
    ".pdf": _as_pdf,
    ".db": _as_database,
}
