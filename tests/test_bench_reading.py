"""The benchmark of reading at a small size: every reader reads every record, and the ratios follow from the rates."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = ["-m", "urepa.bench_reading", "samples=96", "batch_size=32", "workers=1", "rounds=1", "out=rates.json"]


@pytest.mark.slow
def test_rates_of_the_readers_and_their_ratios(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, *COMMAND], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "rates.json").read_text())
    rows = written["reading"]
    places = [(r["records"], r["cache"], r["reader"]) for r in rows]
    assert places == [
        (records, cache, reader)
        for records in ("tokens", "latents")
        for cache in ("warm", "cold")
        for reader in ("preadv", "documented", "unchecked", "urepa")
    ]
    for four in (rows[i : i + 4] for i in range(0, len(rows), 4)):
        plain, documented, unchecked, _ = (r["per_s"] for r in four)
        assert min(r["per_s"] for r in four) > 0
        for r in four:
            assert r["of_preadv"] == pytest.approx(r["per_s"] / plain)
            assert r["of_documented"] == pytest.approx(r["per_s"] / documented)
            assert r["of_unchecked"] == pytest.approx(r["per_s"] / unchecked)
    assert [(c["records"], c["bytes"]) for c in written["crc32"]] == [("tokens", 524_288), ("latents", 32_768)]
    for c in written["crc32"]:
        assert c["core"] == pytest.approx(2900 * c["bytes"] / (c["gb_per_s"] * 1e9))
    printed = [line.split()[:3] for line in done.stdout.splitlines()[1 : 1 + len(places)]]
    assert [tuple(words) for words in printed] == places
    assert [p.name for p in tmp_path.iterdir()] == ["rates.json"]  # the stores are gone
