"""`sordino serve`: the coordinator of a fleet."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    import threading

    from sordino.server.fleet_config import FleetConfig
    from sordino.server.serving import Serving

_LOOK_S = 2.0


def serve(
    config: Path = typer.Option(Path("fleet.toml"), help="The fleet's settings."),
    ready_file: Path | None = typer.Option(
        None, help="Written, as JSON, once it serves: where it is called; deleted at the end."
    ),
    insecure_loopback: bool = typer.Option(
        False, "--insecure-loopback", help="Devices call without TLS: for tests on one machine."
    ),
) -> None:
    """Serve a fleet: its devices, its operators, its runs, until stopped."""
    from sordino.core.trust import require_tls13

    require_tls13()  # before anything imports grpc
    from sordino.cli.ca import read_passphrase
    from sordino.cli.signals import stop_by_signal
    from sordino.client.model.registry import POCKET, POCKET_FOLDER
    from sordino.core.durable import write_whole
    from sordino.server.fleet_config import load_fleet
    from sordino.server.serving import serving

    settings, stop = load_fleet(config), stop_by_signal()
    _log(settings)
    secret = Path(settings.passphrase_file) if settings.passphrase_file else None
    with serving(
        settings,
        passphrase=read_passphrase(secret),
        shipped={POCKET: POCKET_FOLDER},
        insecure_loopback=insecure_loopback,
    ) as made:
        if ready_file is not None:
            told = json.dumps({**made.addresses, "pid": os.getpid()}) + "\n"
            write_whole(ready_file, told.encode())
        where = ", ".join(f"{name} {address}" for name, address in made.addresses.items())
        typer.echo(f"serving: {where}")
        try:
            _wait(made, stop)
        finally:
            if ready_file is not None:
                ready_file.unlink(missing_ok=True)


def _wait(made: Serving, stop: threading.Event) -> None:
    from sordino.core.errors import SordinoError

    while not stop.wait(_LOOK_S):
        if made.failed:
            raise SordinoError("a service came to an end by itself: see the log, and start again")


def _log(settings: FleetConfig) -> None:
    from sordino.server.logs import log_json

    if settings.log == "json":
        log_json(sys.stderr)
    else:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
