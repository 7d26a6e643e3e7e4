"""What a run's paid looks at its metric have measured, from the events that tell it."""

from __future__ import annotations

import json

from sordino.server.operator.tables import Table
from sordino.server.store import Event, Reader, Run


def looks_taken(rows: Reader, run: Run) -> list[Table]:
    """Each look that was taken, the oldest first.

    Returns:
        `look` (from 1), `metric`, `value` (None: nobody answered), `noise_std` of it, `answers`.
    """
    told = rows.all(Event, order="number", kind="metric-measured", run_id=run.run_id)
    return [_table(event) for event in told]


def _table(event: Event) -> Table:
    detail = json.loads(event.detail)
    return {
        "look": event.round,
        "metric": detail["metric"],
        "value": _number(detail["value"]),
        "noise_std": _number(detail["noise_std"]),
        "answers": detail["answers"],
    }


def _number(text: str) -> float | None:
    return None if text == "None" else float(text)
