"""A report's files: whole or absent, and the reason where they can't be written."""

from __future__ import annotations

from pathlib import Path

from sordino.core.durable import write_whole
from sordino.core.errors import ReportError


def write_atomically(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all.

    Raises:
        ReportError: The folder can't be written.
    """
    try:
        write_whole(path, text)
    except OSError as error:
        raise ReportError(f"can't write {path}: {error.strerror}") from error
