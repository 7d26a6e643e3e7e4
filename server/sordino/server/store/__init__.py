"""What the coordinator remembers: rows in a database, artefacts in a folder, both durable.

`Store` is the interface, `SqlStore` the one implementation, over SQLite or PostgreSQL.
docs/coordinator.md describes the tables and every transaction.
"""

from sordino.server.store.artefacts import Artefacts
from sordino.server.store.database import Hook, Reader, SqlStore, Store, Writer, no_hook
from sordino.server.store.records import (
    Accepted,
    ArtefactRow,
    Certificate,
    Command,
    Device,
    Event,
    Head,
    Nonce,
    Round,
    Run,
    Task,
    Token,
    Upload,
)

__all__ = [
    "Accepted",
    "ArtefactRow",
    "Artefacts",
    "Certificate",
    "Command",
    "Device",
    "Event",
    "Head",
    "Hook",
    "Nonce",
    "Reader",
    "Round",
    "Run",
    "SqlStore",
    "Store",
    "Task",
    "Token",
    "Upload",
    "Writer",
    "no_hook",
]
