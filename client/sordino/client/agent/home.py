"""The agent's folder: one agent at a time, and where its coordinator is.

| in the folder | what |
|---|---|
| `identity.json` | key and certificates (`sordino.client.identity`) |
| `fleet.json` | the coordinator's two addresses |
| `agent.lock` | held by the one agent that works here |
| `task.json`, `outbox/` | the task at hand (`journal`) |
| `artefacts/` | fetched files (`cache`) |
| `calibration.json` | figures of the synthetic batch (`sordino.client.device`) |
| `state/` | ledger, kept updates, observations: docs/data-model.md |
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from sordino.client.agent.addresses import parse_address
from sordino.core import durable
from sordino.core.errors import TrustError

FLEET: Final = "fleet.json"
LOCK: Final = "agent.lock"
ARTEFACTS: Final = "artefacts"


def default_folder() -> Path:
    """Where a device keeps what it is, unless told otherwise."""
    states = os.environ.get("XDG_STATE_HOME")
    return (Path(states) if states else Path.home() / ".local" / "state") / "sordino" / "device"


@dataclass(frozen=True, kw_only=True)
class Whereabouts:
    """A coordinator's two addresses, ``host:port`` each.

    Attributes:
        enroll: The listener for enrolment.
        fleet: The listener for members.
    """

    enroll: str
    fleet: str


def save_whereabouts(folder: Path, where: Whereabouts) -> None:
    """Keep a coordinator's addresses."""
    durable.write_whole(folder / FLEET, json.dumps(asdict(where)) + "\n")


def load_whereabouts(folder: Path) -> Whereabouts:
    """The kept addresses.

    Raises:
        TrustError: There are none, or they can't be read.
    """
    path = folder / FLEET
    try:
        fields = json.loads(path.read_bytes())
        where = Whereabouts(**fields)
        parse_address(where.enroll)
        parse_address(where.fleet)
    except FileNotFoundError as error:
        raise TrustError(
            f"{folder} belongs to no fleet: sordino join HOST:PORT --token TOKEN"
        ) from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise TrustError(
            f"{path} doesn't hold a coordinator's addresses: sordino join HOST:PORT"
        ) from error
    return where


@contextmanager
def only_agent(folder: Path) -> Iterator[None]:
    """Be the only agent of a folder for a while, or until the process ends.

    Raises:
        TrustError: Another is at work there.
    """
    durable.make_folder(folder)
    fd = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TrustError(f"another agent works in {folder}: stop it first") from error
        yield
    finally:
        os.close(fd)
