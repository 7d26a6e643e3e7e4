"""The command as a newcomer types it: real processes, real exit codes, readable errors."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = (
    "data.clients=2",
    "data.share=0.08",
    "train.local_steps=1",
    "federation.rounds=1",
    "federation.min_updates=2",
    "performance.workers=0",
    "audit.canaries=4",
)


def sordino(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "sordino.cli.main", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
        timeout=240,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "XDG_STATE_HOME": str(Path(cwd) / ".state"),
        },
    )


def test_a_small_demo_prints_the_table_and_writes_the_report(tmp_path):
    overrides = [part for setting in SMALL for part in ("--set", setting)]
    done = sordino("demo", "--out", str(tmp_path / "run"), *overrides, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "report.html").exists()
    for words in (
        "fraction",
        "without privacy",
        "without federation",
        "δ = 1e-05",
        "Unit user: not bounded",
        "Audit of run, demo: exposure and membership",
        "Nothing is wrong: every figure follows from its scores.",
        "Done in",
    ):
        assert words in re.sub(r"\s+", " ", done.stdout)
    # Plain lines where there is no terminal: no bar, no escape code.
    assert "\x1b[" not in done.stdout
    assert "private federation: 2/2" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("simulate", "nope"), "no scenario 'nope': shipped are central, demo"),
        (("demo", "--set", "privacy.epsilon=-1"), "privacy.epsilon finite and > 0, got -1"),
        (("demo", "--set", "foo.bar=1"), "unknown key foo"),
        (("simulate", "--model", "pockte"), "did you mean pocket?"),
        (("simulate", "--data", "missing.jsonl"), "missing.jsonl"),
        (("simulate", "--resume", "nowhere"), "no run to resume"),
        (("simulate", "--resume", "x", "--model", "pocket"), "give it alone"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path, arguments, words):
    done = sordino(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_every_command_is_documented():
    pages = (ROOT / "README.md").read_text() + "".join(
        page.read_text() for page in (ROOT / "docs").rglob("*.md")
    )
    listed = sordino("--help", cwd=ROOT).stdout
    commands = set(re.findall(r"│ ([a-z]+) ", listed))
    assert {"demo", "simulate", "models", "doctor"} <= commands
    assert [name for name in sorted(commands) if f"sordino {name}" not in pages] == []
