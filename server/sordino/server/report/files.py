"""Files that are whole or absent: a crash can't leave half a report."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from sordino.core.durable import make_folder, sync_folder
from sordino.core.errors import ReportError


def write_atomically(path: Path, text: str) -> None:
    """Write `text` as UTF-8 beside `path`, make it durable, then put it in place.

    Raises:
        ReportError: The folder can't be written.
    """
    try:
        make_folder(path.parent)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise ReportError(f"can't write {path}: {error.strerror}") from error
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # mkstemp's 0600 would keep a colleague from reading the report
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise ReportError(f"can't write {path}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
