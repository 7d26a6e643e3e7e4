"""Canaries on a device: the records that an audit's coins put among the owner's own.

They are inserted only where the owner's configuration names the folder of an audit that was agreed
to (`sordino.privacy.canaries` has the protocol). From there on they are ordinary records: they go
through the same split, the same clip and the same charge. What is special about them is only how
they were chosen: their text is one that the split puts among those that train.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from sordino.client.data.records import Record, split
from sordino.core.config import DataConfig
from sordino.core.durable import write_whole
from sordino.core.errors import DataError
from sordino.privacy.canaries import Canary

PLACED = "placed.json"


def trains(text: str, data: DataConfig) -> bool:
    """Whether a text's own hash puts it among the records that train.

    An auditor draws canaries until they do, as far as the public settings say: a canary that was
    held out would have a coin and no effect.
    """
    train, _ = split([Record(text=text)], held_out=data.held_out, share=data.share)
    return bool(train)


def keep_placed(folder: Path, placed: Sequence[Canary]) -> None:
    """Write down, for the owner's eyes alone, which canaries go in."""
    rows = [{"text": canary.text, "repetitions": canary.repetitions} for canary in placed]
    write_whole(folder / PLACED, json.dumps(rows, ensure_ascii=False) + "\n", mode=0o600)


def placed_records(folder: Path, data: DataConfig) -> tuple[Record, ...]:
    """The canaries that take part, as records to train on.

    Raises:
        DataError: The file can't be read, or the owner's own `held_out` or `share` would keep one
            from training: its coin would then be worth nothing.
    """
    path = folder / PLACED
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        texts = [str(row["text"]) for row in rows for _ in range(int(row["repetitions"]))]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"can't read the audit's canaries from {path}: {error}; agree to the audit again, or "
            "clear the setting canaries"
        ) from error
    records = tuple(Record(text=text) for text in texts)
    train, _ = split(records, held_out=data.held_out, share=data.share)
    if len(train) < len(records):
        raise DataError(
            f"{len(records) - len(train)} of {len(records)} canaries in {path} would not be "
            f"trained on with held_out {data.held_out} and share {data.share}: the audit was made "
            "for other values"
        )
    return records
