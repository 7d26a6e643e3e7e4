"""The command `sordino`."""

from __future__ import annotations

import typer

from sordino.cli import (
    adapter,
    audit,
    bench,
    budget,
    ca,
    chat,
    claim,
    demo,
    device,
    devices,
    doctor,
    evaluate,
    export,
    join,
    ledger,
    models,
    policy,
    runs,
    serve,
    simulate,
    sweep,
    watch,
)
from sordino.cli.entry import run

app = typer.Typer(
    help="Private federated fine-tuning of quantized small language models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("demo")(demo.demo)
app.command("simulate")(simulate.simulate)
app.command("sweep")(sweep.sweep)
app.command("doctor")(doctor.doctor)
app.command("serve")(serve.serve)
app.command("device")(device.device)
app.command("join")(join.join)
app.command("leave")(join.leave)
app.command("claim")(claim.claim)
app.command("budget")(budget.budget)
app.add_typer(audit.app, name="audit")
app.command("chat")(chat.chat)
app.command("evaluate")(evaluate.evaluate)
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
    """Run the command."""
    run(app)


if __name__ == "__main__":
    main()
