"""bench/fleet.py measures what it says: a burst of a few devices, all counted, as JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench" / "fleet.py"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_small_burst_is_measured(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    command = [sys.executable, str(BENCH), "--only", "burst", "--devices", "3"]
    done = subprocess.run(
        [*command, "--folder", str(tmp_path), "--json", str(out)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    figures = json.loads(out.read_text("utf-8"))
    (burst,) = figures["parts"]
    assert (burst["part"], burst["devices"], burst["answers"]) == ("burst", 3, 3)
    assert 0 < burst["ack_p50_s"] <= burst["ack_p99_s"] <= burst["all_acknowledged_s"]
    assert burst["cpu_ms_an_update"] > 0
    assert figures["machine"]["processors"] == os.cpu_count()
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]  # nothing is left
