"""Generate the Python of the contract: ``make protos``. The output is committed.

The generator is pinned: its output asks for its own protobuf (6.31.1) and grpcio, or newer ones.
docs/decisions/0020-contract.md says why this version. ``--release`` also makes what there is the
released contract, which later changes are held against.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path

GENERATOR = "1.74.0"
ROOT = Path(__file__).resolve().parents[1] / "protos"
FOLDER = Path("sordino/protos/v1")
RELEASED = "released.binpb"


def main() -> None:
    """Generate into the source tree, or where ``--into`` says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--into", type=Path, default=ROOT, help="folder that holds sordino/")
    parser.add_argument("--release", action="store_true", help=f"write {RELEASED} too")
    options = parser.parse_args()
    require_generator()
    generate(options.into)
    if options.release:
        describe(options.into / FOLDER / RELEASED)


def require_generator() -> None:
    """Stop unless the pinned generator is installed: another one's output differs."""
    try:
        found = version("grpcio-tools")
    except PackageNotFoundError:
        found = "none"
    if found != GENERATOR:
        sys.exit(f"expected grpcio-tools {GENERATOR}, got {found}: pip install -c constraints.txt")


def generate(into: Path) -> None:
    """Write messages, their types, and the services of those files that have any."""
    target = into / FOLDER
    target.mkdir(parents=True, exist_ok=True)
    for stale in target.glob("*_pb2*.py*"):
        stale.unlink()
    sources = sorted(path.name for path in (ROOT / FOLDER).glob("*.proto"))
    protoc([f"--python_out={into}", f"--pyi_out={into}"], sources)
    services = [
        name for name in sources if "\nservice " in (ROOT / FOLDER / name).read_text("utf-8")
    ]
    protoc([f"--grpc_python_out={into}"], services)
    if target != ROOT / FOLDER:
        shutil.copy(ROOT / FOLDER / "__init__.py", target)


def describe(to: Path, *, comments: bool = False) -> None:
    """Write the descriptors of the contract's own files."""
    options = [f"--descriptor_set_out={to}"]
    if comments:
        options.append("--include_source_info")
    protoc(options, sorted(path.name for path in (ROOT / FOLDER).glob("*.proto")))


def protoc(options: list[str], names: list[str]) -> None:
    """Run the compiler on some of the contract's files."""
    from grpc_tools import protoc as compiler  # noqa: PLC0415  the tests read this file without it

    known = files("grpc_tools").joinpath("_proto")
    paths = [str(FOLDER / name) for name in names]
    code = compiler.main(["protoc", f"-I{ROOT}", f"-I{known}", *options, *paths])
    if code:
        sys.exit(code)


if __name__ == "__main__":
    main()
