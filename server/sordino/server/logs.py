"""One line of JSON for each thing that happened, for whoever collects a coordinator's log.

A line says what, when, and about which device, method or run. It holds no secret and no content:
what a failed call was told stays between the coordinator and its caller, but for the word.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any, TextIO

_FIELDS = "sordino_fields"


def say(log: logging.Logger, event: str, level: int = logging.INFO, **fields: Any) -> None:
    """Log an event, with fields that JSON can hold."""
    if log.isEnabledFor(level):
        text = " ".join(f"{name}={value}" for name, value in fields.items())
        log.log(level, "%s %s", event, text, extra={_FIELDS: {"event": event, **fields}})


class JsonLines(logging.Formatter):
    """Formats every record as one line of JSON; those of `say` by their fields."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        known = getattr(record, _FIELDS, None)
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "log": record.name,
            **(known or {"event": "message", "message": record.getMessage()}),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True, default=str)


def log_json(stream: TextIO, level: int = logging.INFO) -> logging.Handler:
    """Send the project's own log to a stream as lines of JSON, until the handler is removed."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    own = logging.getLogger("sordino")
    own.addHandler(handler)
    own.setLevel(level)
    return handler
