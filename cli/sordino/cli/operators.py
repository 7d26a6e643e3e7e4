"""What the verbs for operators share: who calls which coordinator, and how an answer is printed."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sordino.core.errors import TrustError

if TYPE_CHECKING:
    from sordino.server.operator.client import OperatorClient


class Format(StrEnum):
    """How an answer is printed."""

    table = "table"
    json = "json"


FLEET = typer.Option(
    None, envvar="SORDINO_FLEET", help="The fleet's folder, on the coordinator's own machine."
)
OPERATOR = typer.Option(
    None,
    envvar="SORDINO_OPERATOR",
    help="The operator's folder, from sordino ca operator; none: the fleet's first operator.",
)
ADDRESS = typer.Option(
    None, envvar="SORDINO_ADDRESS", help="HOST:PORT of the coordinator, from any machine."
)
FORMAT = typer.Option(Format.table, "--format", help="For people, or for programs.")
REQUEST_ID = typer.Option(
    None, help="The command's name: again under it, nothing is done twice. None: a new one."
)
YES = typer.Option(False, "--yes", help="Don't ask whether it is meant.")


@contextmanager
def called(
    fleet: Path | None, operator: Path | None, address: str | None
) -> Iterator[OperatorClient]:
    """Call the coordinator that the options name.

    Raises:
        TrustError: They name none, or it can't be reached.
    """
    from sordino.server.enroll.operators import FIRST
    from sordino.server.operator.client import Access, OperatorClient, access_of

    if fleet is not None:
        access = access_of(fleet, operator or fleet / FIRST, address or "")
    elif operator is not None and address:
        access = Access(address=address, credentials=operator)
    else:
        raise TrustError(
            "which coordinator? --fleet FOLDER on its own machine, or from any other "
            "--operator FOLDER with --address HOST:PORT"
        )
    with OperatorClient(access) as client:
        yield client


def new_request_id(given: str | None) -> str:
    """The id of a command."""
    import secrets

    return given or secrets.token_hex(16)


def print_json(answer: object) -> None:
    """An answer for programs: one JSON document."""
    typer.echo(json.dumps(answer, indent=2, sort_keys=True))


def print_table(title: str, columns: Mapping[str, str], rows: Iterable[Iterable[object]]) -> None:
    """An answer for people.

    Args:
        title: Above it.
        columns: How each is aligned, by its heading.
        rows: What a cell shows; what comes from elsewhere is shown as it is, without markup.
    """
    table = Table(title=Text(title), title_justify="left", box=SIMPLE_HEAD)
    for heading, justify in columns.items():
        table.add_column(heading, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*(Text(shown(cell)) for cell in row))
    Console().print(table)


def shown(cell: object) -> str:
    """A cell's text; a dash where nothing is told or known."""
    if cell is None or cell == "":
        return "\N{EN DASH}"
    return str(cell)


def moment(unix_ms: int | None) -> str | None:
    """A moment as people read it, in UTC."""
    if not unix_ms:
        return None
    return f"{datetime.fromtimestamp(unix_ms // 1000, UTC):%F %T}"


def day(unix_ms: int | None) -> str | None:
    """A moment's day, in UTC."""
    found = moment(unix_ms)
    return found and found.partition(" ")[0]


def ago(unix_ms: int | None) -> str | None:
    """How long ago a moment was, by this machine's clock."""
    if not unix_ms:
        return None
    passed_s = max(0, time.time_ns() // 1_000_000 - unix_ms) // 1000
    for seconds, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if passed_s >= seconds:
            return f"{passed_s // seconds} {unit}"
    return f"{passed_s} s"


def epsilon_line(one: Mapping[str, Any]) -> str:
    """A bound with everything without which it would mean nothing, in a sentence."""
    bound = "not bounded" if one["epsilon"] is None else f"ε ≤ {_up(one['epsilon'])}"
    return (
        f"unit {one['unit']}: {bound} at δ = {one['delta']:g}, {one['neighbouring']}, sampling "
        f"{one['sampling']}, {one['accountant']}, over {one['scope']}, trust {one['trust']}"
    )


def _up(value: float) -> str:
    from sordino.core.stats import round_up

    return f"{round_up(value, 2):.2f}" if math.isfinite(value) else "∞"
