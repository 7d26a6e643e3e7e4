"""The tables as SQLAlchemy sees them: their columns are the records' fields.

What a database really has is `migrations`' doing; a test holds the two against each other.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Final

from sqlalchemy import BigInteger, Column, MetaData, Table, Text

from sordino.server.store import records

_COLUMN_TYPES: Final = {"int": BigInteger, "str": Text}  # everything else is a word: text

KEYS: Final[dict[type[Any], tuple[str, tuple[str, ...]]]] = {
    records.Run: ("runs", ("run_id",)),
    records.Round: ("rounds", ("run_id", "round")),
    records.Task: ("tasks", ("task_id",)),
    records.Upload: ("uploads", ("upload_id",)),
    records.ArtefactRow: ("artefacts", ("sha256",)),
    records.Accepted: ("accepted", ("run_id", "round", "device_id")),
    records.Device: ("devices", ("device_id",)),
    records.Certificate: ("certificates", ("serial",)),
    records.Token: ("tokens", ("token_id",)),
    records.Nonce: ("nonces", ("device_id", "nonce")),
    records.Event: ("events", ("number",)),
    records.Command: ("commands", ("request_id",)),
    records.Head: ("heads", ("device_id", "entry_index")),
}
"""Each record's table and the columns that name a row."""


def _table(kind: type[Any], metadata: MetaData) -> Table:
    name, key = KEYS[kind]
    columns: list[Column[Any]] = [
        Column(
            field.name,
            _COLUMN_TYPES.get(str(field.type), Text),
            primary_key=field.name in key,
            autoincrement=False,
        )
        for field in fields(kind)
    ]
    return Table(name, metadata, *columns)


METADATA: Final = MetaData()
TABLES: Final[dict[type[Any], Table]] = {kind: _table(kind, METADATA) for kind in KEYS}
