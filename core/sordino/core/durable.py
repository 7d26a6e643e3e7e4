"""Files that survive a crash: what a function here returned from is on stable storage."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path


def append(fd: int, data: bytes) -> None:
    """Append all of `data` and sync the file. A write that fails leaves the file as it was.

    A sync that fails leaves the data in place: whether it is durable is then unknown.
    """
    size = os.fstat(fd).st_size
    written = 0
    try:
        while written < len(data):
            written += os.write(fd, data[written:])
    except OSError:
        os.ftruncate(fd, size)
        raise
    os.fsync(fd)


def read_all(fd: int) -> bytes:
    """The whole file, wherever its position is."""
    parts, offset = [], 0
    while part := os.pread(fd, 1 << 20, offset):
        parts.append(part)
        offset += len(part)
    return b"".join(parts)


@contextmanager
def locked(path: Path) -> Iterator[int]:
    """Open (or make, for its owner only) a file to read and append, and hold its exclusive lock.

    Its folder is made if need be. The lock ends with the block, or with the process.
    """
    make_folder(path.parent)
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield fd
    finally:
        os.close(fd)


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, each one's entry in its parent synced."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Sync a folder, without which a new or renamed file in it may vanish."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_whole(path: Path, data: bytes | str, *, mode: int = 0o666) -> None:
    """Write a file, its folder made if need be: a crash leaves the old one or the new one.

    Text is written as UTF-8. `mode`, less the process' umask, is the file's from its first byte on:
    0o600 for a secret. Raises OSError if it can't be written; `path` is then as it was.
    """
    make_folder(path.parent)
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(draft, "wb", opener=partial(os.open, mode=mode)) as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    sync_folder(path.parent)
