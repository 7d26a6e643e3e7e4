"""The command `sordino`."""

from __future__ import annotations

import sys

import typer
from rich.console import Console

from sordino.cli import (
    adapter,
    audit,
    bench,
    budget,
    ca,
    chat,
    claim,
    demo,
    devices,
    doctor,
    export,
    join,
    ledger,
    models,
    policy,
    runs,
    serve,
    simulate,
    watch,
)
from sordino.core.errors import SordinoError

app = typer.Typer(
    help="Private federated fine-tuning of quantized small language models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("demo")(demo.demo)
app.command("simulate")(simulate.simulate)
app.command("doctor")(doctor.doctor)
app.command("serve")(serve.serve)
app.command("join")(join.join)
app.command("leave")(join.leave)
app.command("claim")(claim.claim)
app.command("budget")(budget.budget)
app.add_typer(audit.app, name="audit")
app.command("chat")(chat.chat)
app.add_typer(bench.app, name="bench")
app.add_typer(ledger.app, name="ledger")
app.add_typer(policy.app, name="policy")
app.add_typer(models.app, name="models")
app.add_typer(ca.app, name="ca")
app.add_typer(adapter.app, name="adapter")
app.add_typer(runs.app, name="runs")
app.add_typer(devices.app, name="devices")
app.command("watch")(watch.watch)
app.command("export")(export.export)


def main() -> None:
    """Run the command. A user's mistake is one line on stderr and its own exit code."""
    try:
        app()
    except SordinoError as error:
        Console(stderr=True).print(f"sordino: {error}", style="red", markup=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        Console(stderr=True).print("sordino: stopped", markup=False)
        sys.exit(130)


if __name__ == "__main__":
    main()
