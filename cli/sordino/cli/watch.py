"""`sordino watch`: what happens in a fleet, as it happens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from sordino.cli.operators import ADDRESS, FLEET, FORMAT, OPERATOR, Format, called, moment


def watch(
    run: str = typer.Option("", help="Only of this run."),
    after: int = typer.Option(
        0, min=0, help="Only events after this number; 0: only those to come."
    ),
    count: int = typer.Option(0, min=0, help="End after so many; 0: never."),
    fleet: Path | None = FLEET,
    operator: Path | None = OPERATOR,
    address: str | None = ADDRESS,
    format_: Format = FORMAT,
) -> None:
    """Tell what happens: a line each, until it is stopped."""
    from itertools import islice

    from sordino.server.operator.tables import event_table

    with called(fleet, operator, address) as client:
        for event in islice(client.watch(after=after, run_id=run), count or None):
            table = event_table(event)
            if format_ is Format.json:
                typer.echo(json.dumps(table, sort_keys=True))
            else:
                when = moment(table["at_unix_ms"])
                typer.echo(f"{table['number']:>8}  {when}  {_line(table)}")


def _line(table: dict[str, Any]) -> str:
    match table:
        case {"run": run}:
            why = f" ({run['reason']})" if run["reason"] else ""
            done = f"{run['rounds_done']} of {run['rounds_planned']} rounds"
            return f"run {run['run_id']} is {run['state']}{why}, {done}"
        case {"round": one}:
            got = "" if one["asked"] is None else f": {one['received']} of {one['asked']} answered"
            return f"run {one['run_id']}, round {one['round']} is {one['state']}{got}"
        case {"device": device}:
            return f"device {device['device_id']} ({device['name']}) is {device['state']}"
        case {"alarm": alarm}:
            return f"ALARM {alarm['reason']}: {alarm['message']}"
        case _:
            return "something that this version doesn't know"
