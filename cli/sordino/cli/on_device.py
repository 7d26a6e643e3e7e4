"""The command `sordino` of a device that has neither coordinator nor simulation installed."""

from __future__ import annotations

import typer

from sordino.cli import chat, device, join, ledger, models, policy
from sordino.cli.entry import run

app = typer.Typer(
    help="Sordino on a device: private fine-tuning of small language models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("join")(join.join)
app.command("leave")(join.leave)
app.command("device")(device.device)
app.command("chat")(chat.chat)
app.add_typer(ledger.app, name="ledger")
app.add_typer(policy.app, name="policy")
app.add_typer(models.app, name="models")


def main() -> None:
    """Run the command."""
    run(app)
