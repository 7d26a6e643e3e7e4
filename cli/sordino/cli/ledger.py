"""`sordino ledger`: what a device has spent, as a file to hand over, and whether to believe one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from sordino.core.errors import LedgerError

if TYPE_CHECKING:
    from sordino.privacy.ledger import Verdict

app = typer.Typer(help="Show, export and verify privacy ledgers.", no_args_is_help=True)

LEDGER = "ledger.db"
DELTA = typer.Option(1e-5, help="The delta of every epsilon that is printed.")


@app.command()
def show(
    path: Path = typer.Argument(help="A ledger, an export, or a folder with ledgers."),
    delta: float = DELTA,
    entries: bool = typer.Option(False, "--entries", help="Every entry too."),
) -> None:
    """Show what was charged, how far each charge came, and what it adds up to."""
    from sordino.privacy.plan import describe, verify_ledger

    console = Console()
    wrong = False
    for ledger in _ledgers([path]):
        verdict = verify_ledger(ledger, delta=delta)
        wrong = wrong or not verdict.ok
        _print(console, describe(verdict, delta))
        if entries:
            _print(console, _entries(verdict))
    if wrong:
        raise typer.Exit(1)


@app.command()
def export(
    paths: list[Path] = typer.Argument(help="Ledgers, or folders with ledgers."),
    to: Path = typer.Option(..., "--to", help="The JSONL file to write."),
    head: Path | None = typer.Option(
        None, "--head", help="Also write the heads, for another party to keep."
    ),
) -> None:
    """Write ledgers as one JSONL file that anybody can verify."""
    from sordino.privacy.ledger import export_ledgers, write_heads

    heads = export_ledgers(_ledgers(paths), to)
    if head is not None:
        write_heads(heads, head)
    console = Console()
    _print(console, (f"client {h.client}: {h.index + 1} entries, head {h.sha256}" for h in heads))
    _print(console, [f"{to} written"])


@app.command()
def verify(
    ledger: Path = typer.Argument(help="An export, or a ledger."),
    head: Path | None = typer.Option(
        None, "--head", help="Heads that another party kept: they expose a rollback."
    ),
    delta: float = DELTA,
    max_epsilon: float | None = typer.Option(None, help="A cap on the epsilon of every key."),
    policy: list[Path] | None = typer.Option(
        None, help="A device's policy: its caps are replayed over the charges that name it."
    ),
    artefacts: Path | None = typer.Option(
        None, help="A folder of released updates: each must be one that the ledger releases."
    ),
    all_artefacts: bool = typer.Option(
        False, "--all-artefacts", help="A released update that is not in the folder is a defect."
    ),
) -> None:
    """Verify a ledger offline; exit with 1 on any defect, naming the entry."""
    from sordino.privacy.ledger import read_heads
    from sordino.privacy.plan import describe, verify_ledger
    from sordino.privacy.policy import read_unsigned

    verdict = verify_ledger(
        ledger,
        delta=delta,
        heads=read_heads(head) if head else (),
        policies=[read_unsigned(path) for path in policy or ()],
        max_epsilon=max_epsilon,
        artefacts=artefacts,
        all_artefacts=all_artefacts,
    )
    _print(Console(), describe(verdict, delta))
    if not verdict.ok:
        raise typer.Exit(1)


def _ledgers(paths: Iterable[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        found += sorted(path.rglob(LEDGER)) if path.is_dir() else [path]
    if not found:
        raise LedgerError(f"no {LEDGER} in {', '.join(str(path) for path in paths)}")
    return found


def _entries(verdict: Verdict) -> Iterable[str]:
    for client, book in verdict.books.items():
        for entry in book.entries:
            skipped = {"kind", "version", "state", "client", "index", "time", "prev"}
            values = (f"{k}={v}" for k, v in entry.body().items() if k not in skipped)
            yield f"{client} {entry.index:>5} {entry.time} {entry.state:<9} {' '.join(values)}"


def _print(console: Console, lines: Iterable[str]) -> None:
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)
