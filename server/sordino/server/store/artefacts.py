"""Files by SHA-256, whole or not there at all, and uploads that can be taken up where they stopped.

A file gets its name only when all of its bytes are on stable storage, and is checked against its
name when it is read. What no row of the store names is garbage.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Iterator, Set
from pathlib import Path

from sordino.core import durable
from sordino.core.contract import Artefact
from sordino.core.errors import StoreError
from sordino.core.records import require_sha256


class Artefacts:
    """The folder of artefacts, with that of unfinished uploads beside it.

    `lock` is held by whoever makes a file until a row names it, and while garbage is collected.

    Args:
        folder: Made if need be. One process works in it.
    """

    def __init__(self, folder: Path) -> None:
        self.lock = threading.RLock()
        self._whole = folder / "artefacts"
        self._partial = folder / "uploads"
        for made in (self._whole, self._partial):
            durable.make_folder(made)

    def put(self, data: bytes) -> Artefact:
        """Keep bytes durably under their hash.

        Raises:
            OSError: The disk refuses; nothing is kept.
        """
        artefact = Artefact.of(data)
        if not self.has(artefact.sha256):
            durable.write_whole(self._path(artefact.sha256), data)
        return artefact

    def put_file(self, source: Path) -> Artefact:
        """Keep a copy of a file, a base model perhaps, under its hash.

        Raises:
            OSError: It can't be read, or the disk refuses.
            StoreError: It changed while it was copied.
        """
        with source.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if not self.has(sha256):
            draft = self._partial / f"{sha256}.copy"
            shutil.copyfile(source, draft)
            if not self._holds(draft, sha256):
                draft.unlink()
                raise StoreError(f"{source} changed while it was copied")
            self._take(draft, sha256)
        return Artefact(sha256=sha256, size=self._path(sha256).stat().st_size)

    def has(self, sha256: str) -> bool:
        """Whether the file is there."""
        return self._path(sha256).exists()

    def read(self, sha256: str) -> bytes:
        """A whole file, checked.

        Raises:
            StoreError: It isn't there, or isn't what it was.
        """
        try:
            data = self._path(sha256).read_bytes()
        except OSError as error:
            raise _gone(sha256, error) from error
        if hashlib.sha256(data).hexdigest() != sha256:
            raise StoreError(f"artefact {sha256} was damaged on the disk: restore it from a backup")
        return data

    def chunks(self, sha256: str, offset: int = 0, size: int = 1 << 18) -> Iterator[bytes]:
        """A file's bytes from `offset` on, in pieces; whoever has them all checks the hash.

        Raises:
            StoreError: It isn't there.
        """
        try:
            with self._path(sha256).open("rb") as file:
                file.seek(offset)
                while chunk := file.read(size):
                    yield chunk
        except OSError as error:
            raise _gone(sha256, error) from error

    def damaged(self, names: Set[str]) -> list[str]:
        """Which of these files are missing or not what they were; after a restore, say."""
        return [name for name in sorted(names) if not self._holds(self._path(name), name)]

    def sweep(self, named: Set[str], uploads: Set[str]) -> int:
        """Delete every file that isn't `named` and every upload that isn't among `uploads`.

        Returns:
            How many files went. The caller holds `lock` since before it read the names.
        """
        garbage = [path for path in self._whole.glob("*/*") if path.name not in named]
        garbage += [path for path in self._partial.iterdir() if path.name not in uploads]
        for path in garbage:
            path.unlink(missing_ok=True)
        return len(garbage)

    def free_bytes(self) -> int:
        """What the disk has left."""
        return shutil.disk_usage(self._partial).free

    # --- uploads -------------------------------------------------------------------------------

    def begin_upload(self, upload_id: str, size: int) -> None:
        """Make an upload's file durably and allot all of its disk, so that it can't run out later.

        Raises:
            OSError: The disk has no room; nothing is left behind.
        """
        path = self._partial / upload_id
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, size)
            os.fsync(fd)
        except OSError:
            path.unlink()
            raise
        finally:
            os.close(fd)
        durable.sync_folder(self._partial)

    def write_upload(self, upload_id: str, offset: int, data: bytes) -> None:
        """Write a piece of an upload. It is durable after `sync_upload`."""
        fd = os.open(self._partial / upload_id, os.O_RDWR | os.O_CLOEXEC)
        try:
            written = 0
            while written < len(data):
                written += os.pwrite(fd, data[written:], offset + written)
        finally:
            os.close(fd)

    def sync_upload(self, upload_id: str) -> None:
        """Bring what was written of an upload to stable storage."""
        fd = os.open(self._partial / upload_id, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def read_upload(self, upload_id: str, sha256: str) -> bytes | None:
        """The bytes of a whole upload, also once it was taken over; None: not what it should be."""
        try:
            data = (self._partial / upload_id).read_bytes()
        except FileNotFoundError:
            return self.read(sha256) if self.has(sha256) else None
        return data if hashlib.sha256(data).hexdigest() == sha256 else None

    def take_upload(self, upload_id: str, sha256: str) -> None:
        """Make an upload that `read_upload` gave an artefact. A second time changes nothing."""
        path = self._partial / upload_id
        if path.exists():
            self._take(path, sha256)

    def drop_upload(self, upload_id: str) -> None:
        """Delete what came of an upload."""
        (self._partial / upload_id).unlink(missing_ok=True)

    def _take(self, source: Path, sha256: str) -> None:
        fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        target = self._path(sha256)
        durable.make_folder(target.parent)
        source.replace(target)
        durable.sync_folder(target.parent)

    def _path(self, sha256: str) -> Path:
        require_sha256("artefact", sha256)
        return self._whole / sha256[:2] / sha256

    @staticmethod
    def _holds(path: Path, sha256: str) -> bool:
        try:
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == sha256
        except OSError:
            return False


def _gone(sha256: str, error: OSError) -> StoreError:
    reason = error.strerror
    return StoreError(f"can't read artefact {sha256} ({reason}): restore it from a backup")
