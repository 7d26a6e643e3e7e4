"""`sordino devices`: who is in a fleet, and who shall not be."""

from __future__ import annotations

from pathlib import Path

import typer

from sordino.cli.ca import STORE
from sordino.cli.operators import (
    ADDRESS,
    FLEET,
    FORMAT,
    OPERATOR,
    REQUEST_ID,
    YES,
    Format,
    ago,
    called,
    day,
    new_request_id,
    print_json,
    print_table,
)

app = typer.Typer(help="A fleet's devices.", no_args_is_help=True)

DEVICE = typer.Argument(help="The device's name.")


@app.command(name="list")
def list_(
    state: list[str] = typer.Option(
        [],
        help="Only these: online, offline, resting, suspect, revoked, left; repeatable.",
    ),
    fleet: Path | None = FLEET,
    operator: Path | None = OPERATOR,
    address: str | None = ADDRESS,
    format_: Format = FORMAT,
) -> None:
    """List devices by name."""
    from sordino.server.operator.tables import device_state, device_table

    states = [device_state(word) for word in state]
    with called(fleet, operator, address) as client:
        devices = [device_table(device) for device in client.devices(*states)]
    if format_ is Format.json:
        print_json(devices)
        return
    columns = {"device": "left", "name": "left", "state": "left", "seen": "right"}
    more = {"ends": "left", "accepted": "right", "failures": "right", "entry": "right"}
    print_table(
        "Devices",
        columns | more,
        (
            (
                device["device_id"],
                device["name"],
                device["state"],
                ago(device["last_seen_unix_ms"]),
                day(device["not_after_unix_ms"]),
                device["accepted"],
                device["failures"],
                device["ledger_head"]["entry_index"] if device["ledger_head"] else None,
            )
            for device in devices
        ),
    )
    typer.echo("seen: how long ago; ends: its certificate; entry: its ledger's newest known one")


@app.command()
def revoke(
    name: str = DEVICE,
    because: str = typer.Option("revoked by the operator", help="For people and the log."),
    yes: bool = YES,
    request_id: str | None = REQUEST_ID,
    fleet: Path | None = FLEET,
    operator: Path | None = OPERATOR,
    address: str | None = ADDRESS,
    format_: Format = FORMAT,
) -> None:
    """Revoke a device for good, from its next call on."""
    from sordino.protos.v1 import operator_pb2
    from sordino.server.operator.tables import device_table

    if not yes:
        typer.confirm(f"Revoke {name} for good?", abort=True)
    request = operator_pb2.RevokeDeviceRequest(
        request_id=new_request_id(request_id), device_id=name, reason=because
    )
    with called(fleet, operator, address) as client:
        device = client.call("RevokeDevice", request, operator_pb2.Device)
    if format_ is Format.json:
        print_json(device_table(device))
    else:
        typer.echo(f"{name} is revoked")


@app.command()
def clear(
    fleet: Path = typer.Argument(help="The fleet's folder, on the coordinator's own machine."),
    name: str = DEVICE,
    request_id: str | None = REQUEST_ID,
    store: str | None = STORE,
) -> None:
    """Take a suspect or resting device back, after somebody has looked why it is one."""
    from sordino.cli.ca import opened
    from sordino.server.fleet_rounds import clear_device

    with opened(fleet, store) as kept:
        device = clear_device(kept, new_request_id(request_id), name)
    typer.echo(f"{device.device_id} may be asked again")
