"""`sordino budget`: how many rounds are left at the present plan."""

from __future__ import annotations

from pathlib import Path

import typer


def budget(
    plan: Path = typer.Argument(help="A plan.json."),
    ledger: Path | None = typer.Option(
        None, "--ledger", help="The device's ledger, or an export; none: nothing is spent yet."
    ),
    policy: Path | None = typer.Option(
        None, "--policy", help="The device's policy; none: the built-in one."
    ),
    dataset: str = typer.Option("", help="The dataset; none: each that the ledger charges."),
) -> None:
    """Forecast the rounds that a device's policy still allows of a plan."""
    from sordino.core.errors import PlanError
    from sordino.privacy.ledger import read_charges
    from sordino.privacy.plan import CentralPlan, Plan, decode_plan, forecasts
    from sordino.privacy.policy import BUILT_IN, read_unsigned

    try:
        wanted = decode_plan(plan.read_bytes())
    except OSError as error:
        raise PlanError(f"can't read {plan}: {error.strerror}") from error
    if not isinstance(wanted, Plan | CentralPlan):
        raise PlanError("a plan without privacy spends nothing")
    rules = read_unsigned(policy) if policy else BUILT_IN
    charges = read_charges(ledger) if ledger else {}
    for client, reserved in (charges or {"a new device": ()}).items():
        for forecast in forecasts(rules, wanted, reserved, dataset):
            typer.echo(f"client {client}, {forecast}")
