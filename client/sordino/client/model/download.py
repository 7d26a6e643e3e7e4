"""Download into a `.part` file that a later attempt goes on with."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sordino.core.errors import ModelError, expected

Progress = Callable[[str, int, int], None]  # what is done, bytes so far, bytes in all (0: unknown)

_CHUNK = 1 << 18


@dataclass(frozen=True, kw_only=True)
class Remote:
    """A file to bring here.

    Attributes:
        url: ``https``, ``http`` or ``file``.
        label: What progress is told.
        timeout_s: For connecting and for each read, not for the whole.
        limit: More bytes than this are refused.
        certificates: File of trusted certificates instead of the system's.
    """

    url: str
    label: str
    timeout_s: float
    limit: int
    certificates: str | None = None


def download(remote: Remote, part: Path, progress: Progress) -> None:
    """Bring a file's bytes into `part`, continuing where an earlier attempt was cut off.

    What `part` holds is not to be believed before its checksum was taken: an earlier attempt may
    have been at another version. It is kept when anything fails.

    Raises:
        ModelError: The server can't be reached, refuses, sends too much, or ends too early.
    """
    address = urlsplit(remote.url)
    try:
        if address.scheme == "file":
            _copy(Path(urllib.request.url2pathname(address.path)), part, remote.label, progress)
        elif address.scheme in ("http", "https"):
            _transfer(remote, part, progress)
        else:
            raise ModelError(expected("the address", remote.url, "with https, http or file"))
    except urllib.error.URLError as error:
        raise ModelError(str(error.reason)) from error
    except (OSError, http.client.HTTPException) as error:
        raise ModelError(str(error) or type(error).__name__) from error


def _copy(source: Path, part: Path, label: str, progress: Progress) -> None:
    """A file on this machine is copied anew: going on would save nothing."""
    shutil.copyfile(source, part)
    progress(label, part.stat().st_size, part.stat().st_size)


def _transfer(remote: Remote, part: Path, progress: Progress) -> None:
    have = part.stat().st_size if part.exists() else 0
    with contextlib.closing(_open(remote, have)) as response:
        start, total = _extent(response, have)
        done = start
        with part.open("r+b" if start else "wb") as out:
            out.seek(start)
            while block := response.read(_CHUNK):
                done += len(block)
                if max(done, total) > remote.limit:
                    raise ModelError(
                        f"the server sends more than the {remote.limit} bytes expected"
                    )
                out.write(block)
                progress(remote.label, done, total)
            out.truncate()
            out.flush()
            os.fsync(out.fileno())
    if total and done < total:
        raise ModelError(f"the connection ended after {done} of {total} bytes: run it again")


def _open(remote: Remote, have: int) -> Any:
    headers = {"User-Agent": "sordino", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    request = urllib.request.Request(remote.url, headers=headers)  # noqa: S310 - its scheme is checked
    context = ssl.create_default_context(cafile=remote.certificates)
    try:
        return urllib.request.urlopen(request, timeout=remote.timeout_s, context=context)  # noqa: S310
    except urllib.error.HTTPError as error:
        # Nothing lies after what we have: it is whole already, or it is something else.
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and have:
            return _open(remote, 0)
        raise ModelError(f"the server answers {error.code} {error.reason}") from error


def _extent(response: Any, have: int) -> tuple[int, int]:
    """Where the answer's first byte belongs, and the bytes of the whole; 0 where not told."""
    length = int(response.headers.get("Content-Length") or 0)
    if response.status == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range") or "")
        if not found or int(found[1]) > have:
            raise ModelError("the server answers with another part of the file than was asked for")
        return int(found[1]), int(found[2])
    return 0, length
