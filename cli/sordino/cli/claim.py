"""`sordino claim`: what a run promises, as its ledger bears it out."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import typer


def claim(
    run: Path = typer.Argument(help="A run's folder."),
    form: Literal["markdown", "json"] = typer.Option(
        "markdown", "--format", help="How to print it."
    ),
    against: Path | None = typer.Option(
        None, "--against", metavar="RUN", help="Compare with another run's claim instead."
    ),
) -> None:
    """Print a run's privacy claim; refuse where its ledger doesn't bear it out."""
    from sordino.privacy.claims import compare_claims
    from sordino.server.report import claim_of_run

    own = claim_of_run(run)
    if against is not None:
        typer.echo(compare_claims(own, claim_of_run(against)))
        return
    typer.echo(own.to_json() if form == "json" else own.to_markdown(), nl=False)
