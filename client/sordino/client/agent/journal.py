"""What must outlast the process about the task at hand: the task, and the answer on its way.

| file, in the agent's folder | what |
|---|---|
| `task.json` | the task as it came; once there is an answer, its hash and size |
| `outbox/<sha256>.update` | the answer's very bytes, until they were acknowledged |

That a round was charged and which update it made is the ledger's matter (docs/data-model.md); this
only says whom it is owed. What is lost here costs an answer, never a second charge or draw.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sordino.core import canonical, durable
from sordino.core.contract import Artefact, TaskOrder, decode_task
from sordino.core.errors import WireError

TASK: Final = "task.json"
OUTBOX: Final = "outbox"
_VERSION = 1
_MODE = 0o600
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Noted:
    """The task at hand.

    Attributes:
        order: The task.
        answer: What answers it; None: there is none yet.
    """

    order: TaskOrder
    answer: Artefact | None = None


def peek(folder: Path) -> TaskOrder | None:
    """The task at hand, for whoever only looks: nothing is changed, and no lock is needed."""
    try:
        return decode_task(base64.b64decode(json.loads((folder / TASK).read_bytes())["task"]))
    except (OSError, ValueError, LookupError, TypeError, WireError):
        return None


class Journal:
    """The task at hand, on stable storage.

    Args:
        folder: The agent's.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / TASK
        self._outbox = folder / OUTBOX
        self._task = b""  # the encoding of the task at hand

    def note(self, task: bytes) -> None:
        """Write down a task before anything is done for it; the one before is forgotten."""
        self._task = task
        self._write(None)
        self._clear_outbox(keep="")

    def keep(self, answer: bytes) -> Artefact:
        """Keep an answer, then write down that it is the task's."""
        artefact = Artefact.of(answer)
        durable.write_whole(self.path_of(artefact), answer, mode=_MODE)
        self._write(artefact)
        return artefact

    def read(self) -> Noted | None:
        """The task at hand, if there is one. What can't be read is forgotten, with a word."""
        try:
            fields = json.loads(self._path.read_bytes())
            noted = self._parse(fields)
        except FileNotFoundError:
            self._clear_outbox(keep="")
            return None
        except (ValueError, LookupError, TypeError, binascii.Error, WireError) as error:
            _LOG.error("%s can't be read and is forgotten: %s", self._path, error)
            self.forget()
            return None
        self._clear_outbox(keep=noted.answer.sha256 if noted.answer else "")
        return noted

    def path_of(self, answer: Artefact) -> Path:
        """The file of a kept answer."""
        return self._outbox / f"{answer.sha256}.update"

    def forget(self) -> None:
        """Let the task at hand go, and its answer."""
        self._task = b""
        self._path.unlink(missing_ok=True)
        if self._path.parent.is_dir():
            durable.sync_folder(self._path.parent)
        self._clear_outbox(keep="")

    def _parse(self, fields: dict[str, Any]) -> Noted:
        if fields["version"] != _VERSION:
            raise ValueError(f"version {fields['version']}")
        task = base64.b64decode(fields["task"], validate=True)
        order, answer = decode_task(task), None
        if fields["answer"]:
            sha256, size = fields["answer"]
            answer = self._whole(Artefact(sha256=sha256, size=size))
        self._task = task
        return Noted(order=order, answer=answer)

    def _whole(self, answer: Artefact) -> Artefact | None:
        """The answer, if its bytes are there and right; else it is made anew from what was kept."""
        path = self.path_of(answer)
        data = path.read_bytes() if path.is_file() else b""
        return answer if canonical.sha256_hex(data) == answer.sha256 else None

    def _write(self, answer: Artefact | None) -> None:
        fields = {
            "version": _VERSION,
            "task": base64.b64encode(self._task).decode(),
            "answer": [answer.sha256, answer.size] if answer else None,
        }
        durable.write_whole(self._path, json.dumps(fields) + "\n", mode=_MODE)

    def _clear_outbox(self, *, keep: str) -> None:
        if self._outbox.is_dir():
            for path in self._outbox.iterdir():
                if path.name != f"{keep}.update":
                    path.unlink(missing_ok=True)
