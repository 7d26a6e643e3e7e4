"""`sordino demo`: the whole product in two minutes, with what is in the package."""

from __future__ import annotations

from pathlib import Path

import typer


def demo(
    settings: list[str] = typer.Option(
        [], "--set", metavar="SECTION.KEY=VALUE", help="Override a setting; may be repeated."
    ),
    out: Path | None = typer.Option(None, "--out", help="The run's folder (default: runs/<id>)."),
) -> None:
    """Fine-tune the embedded model privately over eight of Shakespeare's roles, audit, and report.

    No network, no account and no GPU are needed.
    """
    from sordino.cli.audit import audit_demo
    from sordino.cli.simulate import load, run

    audit_demo(run(load("demo", None, None, settings), out))
