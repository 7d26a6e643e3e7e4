"""Fetched files by their hash, within a limit of disk. Nothing half-fetched is taken for whole.

A file gathers in `<sha256>.part` and gets its name only once its hash was right; a fetch that was
cut goes on with the bytes at hand. The one that wasn't used for longest goes first.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import BinaryIO

from sordino.core import durable
from sordino.core.contract import Artefact
from sordino.core.errors import ContractError, DataError, expected

Chunks = Callable[[int], Iterable[tuple[int, bytes]]]
"""From an offset: (offset, bytes), piece by piece, up to the file's end."""


class ArtefactCache:
    """A folder of files by hash.

    Args:
        folder: Made if need be.
        limit_bytes: What all files may take together, the half-fetched ones included.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes

    def find(self, artefact: Artefact, suffix: str = "") -> Path | None:
        """A whole file, if it is here; it counts as used now."""
        path = self.folder / f"{artefact.sha256}{suffix}"
        if not path.is_file() or path.stat().st_size != artefact.size:
            return None
        os.utime(path)
        return path

    def fetch(
        self, artefact: Artefact, chunks: Chunks, *, suffix: str = "", needed: Collection[Path] = ()
    ) -> Path:
        """Find a file, or fetch what is missing of it.

        Args:
            artefact: Which.
            chunks: Where its bytes come from. What it raises ends the attempt; what came stays.
            suffix: Of the file's name, for readers that go by it.
            needed: Files that must not be let go for this one.

        Raises:
            DataError: It can't fit within the limit.
            ContractError: ``wrong-offset``, ``too-long`` or ``truncated``: the pieces don't make
                the file; ``wrong-hash``: they make another, and what came is deleted.
        """
        whole = self.find(artefact, suffix)
        if whole is not None:
            return whole
        durable.make_folder(self.folder)
        part = self.folder / f"{artefact.sha256}.part"
        self._make_room(artefact, needed)
        continued = part.exists() and part.stat().st_size > 0
        with part.open("ab") as file:
            self._append(file, artefact, chunks)
            file.flush()
            os.fsync(file.fileno())
        with part.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != artefact.sha256:
            part.unlink()
            if continued:  # what was here may be at fault, after a crash
                return self.fetch(artefact, chunks, suffix=suffix, needed=needed)
            raise ContractError("wrong-hash", f"what came is not {artefact.sha256}: fetch it anew")
        path = self.folder / f"{artefact.sha256}{suffix}"
        part.replace(path)
        durable.sync_folder(self.folder)
        return path

    def used_bytes(self) -> int:
        """What is here."""
        return sum(path.stat().st_size for path in self._files())

    def _append(self, file: BinaryIO, artefact: Artefact, chunks: Chunks) -> None:
        at = file.tell()
        if at > artefact.size:
            at = file.truncate(0)
        if at < artefact.size:
            for offset, data in chunks(at):
                if offset != at:
                    raise ContractError("wrong-offset", expected("offset", offset, f"= {at}"))
                at += len(data)
                if at > artefact.size:
                    raise ContractError("too-long", expected("bytes", at, f"<= {artefact.size}"))
                file.write(data)
        if at < artefact.size:
            raise ContractError("truncated", expected("bytes", at, f"= {artefact.size}"))

    def _make_room(self, artefact: Artefact, needed: Collection[Path]) -> None:
        """Let files go, the least used first, until the whole of this one fits."""
        part = self.folder / f"{artefact.sha256}.part"
        others = [path for path in self._files() if path != part]
        room = self.limit_bytes - artefact.size - sum(path.stat().st_size for path in others)
        for path in sorted(others, key=lambda path: path.stat().st_mtime):
            if room < 0 and path not in needed:
                room += path.stat().st_size
                path.unlink()
        if room < 0:
            required = f"room for {artefact.size} bytes more than what is in use"
            todo = "raise it in the device's configuration"
            raise DataError(expected("storage_mb", self.limit_bytes // 10**6, required, todo))

    def _files(self) -> list[Path]:
        return [p for p in self.folder.glob("*") if p.is_file()] if self.folder.is_dir() else []
