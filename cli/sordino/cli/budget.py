"""`sordino budget`: how many rounds are left at the present plan."""

from __future__ import annotations

from pathlib import Path

import typer


def budget(
    plan: Path = typer.Argument(help="A plan.json, or a metric.json."),
    ledger: Path | None = typer.Option(
        None, "--ledger", help="The device's ledger, or an export; none: nothing is spent yet."
    ),
    policy: Path | None = typer.Option(
        None, "--policy", help="The device's policy; none: the built-in one."
    ),
    metric: Path | None = typer.Option(
        None, "--metric", help="The metric.json of the same run: its looks are set aside first."
    ),
    dataset: str = typer.Option("", help="The dataset; none: each that the ledger charges."),
) -> None:
    """Forecast the rounds that a device's policy still allows of a plan."""
    from sordino.core.errors import PlanError
    from sordino.privacy.ledger import read_charges
    from sordino.privacy.plan import decode_charged_plan, decode_metric_plan, forecasts
    from sordino.privacy.policy import BUILT_IN, read_unsigned

    try:
        wanted = decode_charged_plan(plan.read_bytes())
        bought = decode_metric_plan(metric.read_bytes()) if metric else None
    except OSError as error:
        raise PlanError(f"can't read {error.filename}: {error.strerror}") from error
    rules = read_unsigned(policy) if policy else BUILT_IN
    charges = read_charges(ledger) if ledger else {}
    for client, reserved in (charges or {"a new device": ()}).items():
        for forecast in forecasts(rules, wanted, reserved, dataset, bought):
            typer.echo(f"client {client}, {forecast}")
