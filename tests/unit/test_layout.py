"""The namespace package holds together, and the project's rooms stay apart."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("cli", "core", "privacy", "protos", "client", "server", "sim")


def test_no_room_closes_the_namespace():
    # An __init__.py directly in any */sordino/ hides every sibling.
    assert [room for room in ROOMS if (ROOT / room / "sordino" / "__init__.py").exists()] == []


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_is_importable_and_typed(room):
    assert (ROOT / room / "sordino" / room / "__init__.py").exists()
    assert (ROOT / room / "sordino" / room / "py.typed").exists()


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("sordino.server.strategy", ("torch", "transformers", "peft", "opacus")),
        ("sordino.server.app", ("torch", "transformers", "peft", "opacus")),
        ("sordino.server.fleet_rounds", ("torch", "flwr", "grpc")),
        ("sordino.server.report", ("torch", "transformers", "peft", "opacus", "flwr")),
        ("sordino.privacy.plan", ("torch", "flwr", "grpc")),
        ("sordino.privacy.audit", ("torch", "flwr", "grpc", "rapidfuzz")),
        ("sordino.core.contract", ("torch", "flwr", "grpc")),
        ("sordino.client.session", ("transformers", "peft", "gguf", "ray")),
        ("sordino.cli.main", ("torch", "flwr", "transformers", "opacus")),
    ],
)
def test_what_is_not_needed_is_not_imported(module, absent):
    code = f"import sys, {module}; print([m for m in {absent!r} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_the_wheel_holds_what_the_demo_needs():
    for path in (
        "client/sordino/client/model/pocket/pocket.gguf",
        "client/sordino/client/model/pocket/tokenizer.json",
        "sim/sordino/sim/scenarios/demo.toml",
    ):
        assert (ROOT / path).exists()


def test_source_files_stay_small():
    long = {
        str(path.relative_to(ROOT)): lines
        for room in ROOMS
        for path in (ROOT / room).rglob("*.py")
        if "_pb2" not in path.name and (lines := len(path.read_text().splitlines())) > 400
    }
    assert long == {}


def test_links_within_the_docs_lead_somewhere():
    pages = [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")]
    broken = []
    for page in pages:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target and not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)} -> {target}")
    assert broken == []
