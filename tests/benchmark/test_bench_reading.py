"""The bench of reading, small: every reader reads every record, and the ratios belong to the rates."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = ["-m", "urepa.bench_reading", "samples=96", "batch_size=32", "workers=1", "rounds=1", "out=rates.json"]


@pytest.mark.slow
def test_rates_of_three_readers_and_their_ratios(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, *COMMAND], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "rates.json").read_text())
    places = [(r["records"], r["cache"], r["reader"]) for r in rows]
    assert places == [
        (records, cache, reader)
        for records in ("tokens", "latents")
        for cache in ("warm", "cold")
        for reader in ("preadv", "documented", "urepa")
    ]
    for three in (rows[i : i + 3] for i in range(0, len(rows), 3)):
        plain, documented, _ = (r["per_s"] for r in three)
        assert min(r["per_s"] for r in three) > 0
        for r in three:
            assert r["of_preadv"] == pytest.approx(r["per_s"] / plain)
            assert r["of_documented"] == pytest.approx(r["per_s"] / documented)
    printed = [line.split()[:3] for line in done.stdout.splitlines()[1:]]
    assert [tuple(words) for words in printed] == places
    assert [p.name for p in tmp_path.iterdir()] == ["rates.json"]  # the stores are gone
