"""A PostgreSQL server for a run of the tests, from Debian's packages, on a socket of its own."""

import os
import pwd
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path


def why_not():
    """Why there can be no server here; empty: there can."""
    if not _programs():
        return "PostgreSQL isn't installed: apt-get install postgresql"
    if find_spec("psycopg") is None:
        return "psycopg isn't installed: pip install sordino[postgres]"
    return ""


@contextmanager
def server():
    """Start a server, and give a function that makes a new database and gives its URL."""
    programs = _programs()
    folder = Path(tempfile.mkdtemp(prefix="sordino-pg-"))
    # The server refuses to run as root.
    user = "nobody" if os.geteuid() == 0 else None
    if user:
        shutil.chown(folder, user)
    try:
        data = str(folder / "data")
        _run([programs / "initdb", "-D", data, "-A", "trust", "-N"], user, folder)
        options = f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync=off"
        start = [programs / "pg_ctl", "-D", data, "-w", "-l", str(folder / "log"), "-o", options]
        _run([*start, "start"], user, folder)
        try:
            yield _databases(programs, folder, user)
        finally:
            stop = [programs / "pg_ctl", "-D", data, "-m", "immediate", "stop"]
            _run(stop, user, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _databases(programs, folder, user):
    owner = user or pwd.getpwuid(os.geteuid()).pw_name
    made = []

    def database():
        made.append(f"sordino_{len(made)}")
        _run([programs / "createdb", "-h", str(folder), made[-1]], user, folder)
        return f"postgresql+psycopg://{owner}@/{made[-1]}?host={folder}"

    return database


def _run(command, user, folder):
    subprocess.run(command, user=user, cwd=folder, check=True, capture_output=True)


def _programs():
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None
