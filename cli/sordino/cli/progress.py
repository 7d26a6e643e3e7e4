"""Progress for people: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LINE_EVERY_S = 10.0


class Bars:
    """One bar a phase; finished ones stay."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: TaskID | None = None

    def phase(self, title: str, total: int) -> None:
        """Begin a bar."""
        self._task = self._progress.add_task(title, total=total)

    def advance(self, done: int = 1) -> None:
        """Move the bar."""
        if self._task is not None:
            self._progress.advance(self._task, done)

    def say(self, line: str) -> None:
        """Print a line above the bars."""
        self._progress.console.print(line, markup=False, highlight=False)


class Lines:
    """A line when a phase begins and ends, and every ten seconds between."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._title, self._done, self._total = "", 0, 0
        self._began = self._said = time.monotonic()

    def phase(self, title: str, total: int) -> None:
        """Say that a phase begins."""
        self._title, self._done, self._total = title, 0, total
        self._began = self._said = time.monotonic()
        self.say(f"{title} ...")

    def advance(self, done: int = 1) -> None:
        """Say now and then how far it is."""
        self._done += done
        now = time.monotonic()
        if self._done >= self._total or now - self._said > LINE_EVERY_S:
            self._said = now
            self.say(f"{self._title}: {self._done}/{self._total} ({now - self._began:.0f} s)")

    def say(self, line: str) -> None:
        """Print a line."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def watching(console: Console) -> Iterator[Bars | Lines]:
    """Show progress while the block runs, in the way that suits the console."""
    if not console.is_terminal:
        yield Lines(console)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        yield Bars(progress)
