"""What a long run tells whoever watches it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives the phases of a run; the command line shows them as bars or as lines."""

    def phase(self, title: str, total: int) -> None:
        """A phase of `total` pieces of work begins; the one before is over."""
        ...

    def advance(self, done: int = 1) -> None:
        """Some of the phase's pieces are done."""
        ...

    def say(self, line: str) -> None:
        """Something worth a line of its own."""
        ...


class Silent:
    """Tells nobody."""

    def phase(self, title: str, total: int) -> None:
        """Say nothing."""

    def advance(self, done: int = 1) -> None:
        """Say nothing."""

    def say(self, line: str) -> None:
        """Say nothing."""
