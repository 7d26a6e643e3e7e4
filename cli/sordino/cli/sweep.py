"""`sordino sweep`: a grid of experiments on this machine, and one report of them all."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from sordino.sim.sweeps import SweepResult

_COLUMNS = (
    "ε\nspent",
    "noise\nmult.",
    "gain",
    "over\nseeds",
    "no\nprivacy",
    "alone,\nno noise",
    "kept",
)


def sweep(
    file: Path = typer.Argument(
        help="A sweep's TOML file: docs/experiments.md says what is in it."
    ),
    out: Path | None = typer.Option(
        None, "--out", help="The sweep's folder (default: sweeps/<the file's name>)."
    ),
    workers: int | None = typer.Option(
        None, "--workers", min=0, help="Cells at once, a process each (default: the file's)."
    ),
) -> None:
    """Run every cell of a sweep that isn't finished yet; the same command goes on after a stop."""
    from sordino.cli.progress import watching
    from sordino.sim.sweeps import read_spec

    spec, own_workers = read_spec(file)
    folder = out or Path("sweeps") / file.stem
    console = Console()
    started = time.monotonic()
    with watching(console) as progress:
        from sordino.sim.sweeps import run_sweep

        try:
            result = run_sweep(
                spec,
                folder,
                workers=own_workers if workers is None else workers,
                progress=progress,
            )
        except KeyboardInterrupt:
            progress.say("Stopped. The same command goes on; finished cells are not run again.")
            raise
    show(result, console)
    console.print(f"Report: {result.folder / 'report.html'}", soft_wrap=True, markup=False)
    console.print(f"Done in {time.monotonic() - started:.0f} s.")


def show(result: SweepResult, console: Console) -> None:
    """Print a line a setting, and what all runs cost together where the data is private."""
    from sordino.sim.sweeps.page import View

    view = View(result)
    table = Table(title=f"Sweep {result.folder.name}", title_justify="left", box=SIMPLE_HEAD)
    for path in result.settings:
        table.add_column(path.replace(".", ".\n"), overflow="fold")
    for name in _COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for group in result.groups:
        own = [view.value(group, path) for path in result.settings]
        table.add_row(*map(Text, (*own, *view.figures(group))))
    said = "; ".join(f"{name}: {text}" for name, text in view.facts())
    console.print(table)
    for line in (
        f"Gains in nats per held-out token. {view.method}",
        f"ε is of each run by itself. {said}.",
        *([] if result.price is None else [f"Private data: {result.price}."]),
    ):
        console.print(line, markup=False, highlight=False)
