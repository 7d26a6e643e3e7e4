"""docs/pitfalls.md names real tests."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMED = re.findall(
    r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs" / "pitfalls.md").read_text(encoding="utf-8")
)


@pytest.mark.parametrize(("path", "name"), NAMED, ids=[name for _, name in NAMED])
def test_it_exists(path, name):
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_row_names_one():
    rows = [
        line
        for line in (ROOT / "docs" / "pitfalls.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| ") and not line.startswith("| Pitfall")
    ]
    assert len(rows) == len(NAMED) > 30
