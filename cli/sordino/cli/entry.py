"""How a command of ours ends: with its own exit code, and a user's mistake in one line."""

from __future__ import annotations

import sys

import typer
from rich.console import Console

from sordino.core.errors import SordinoError


def run(app: typer.Typer) -> None:
    """Run a command. A user's mistake is one line on stderr and its own exit code."""
    try:
        app()
    except SordinoError as error:
        Console(stderr=True).print(f"sordino: {error}", style="red", markup=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        Console(stderr=True).print("sordino: stopped", markup=False)
        sys.exit(130)
