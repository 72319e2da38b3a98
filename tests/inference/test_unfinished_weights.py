"""The warning on images of a run that did not train to its end."""

from __future__ import annotations

import json
from pathlib import Path

from urepa.inference.load_weights import RunWeights
from urepa.runs import checkpoint


def test_only_an_unfinished_run_is_warned_of(tmp_path: Path) -> None:
    """A run that `stop_when` ended is finished at its last checkpoint."""
    found = checkpoint.Checkpoint(tmp_path, 4, {})
    weights = RunWeights(tmp_path, {"trainer": {"max_steps": 12}}, {}, found)
    assert weights.warning is not None
    assert "has 4 of 12 steps" in weights.warning
    known = {"experiment": "quickstart", "ablation": "baseline", "seed": 0, "step": 4, "metrics": {}, "seconds": {}}
    early = {"ended_early": {"step": 4, "of": 12, "why": "because"}}
    (tmp_path / "summary.json").write_text(json.dumps(known | early))
    assert weights.warning is None
