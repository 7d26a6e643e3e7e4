"""`sordino join` and `sordino leave`: a device as a member of a fleet."""

from __future__ import annotations

import logging
from pathlib import Path

import typer

FOLDER = typer.Option(
    None, help="Where the device keeps its identity, ledger and work; else the user's state folder."
)


def join(
    coordinator: str = typer.Argument(
        "", help="HOST:PORT of the listener for enrolment; later starts know it."
    ),
    token: str = typer.Option(
        "", envvar="SORDINO_TOKEN", show_envvar=True, help="The one-time token, at the first start."
    ),
    folder: Path | None = FOLDER,
    config: Path | None = typer.Option(
        None, help="The device's settings; else device.toml in the folder."
    ),
    fleet_address: str = typer.Option(
        "", help="HOST:PORT of the listener for members, if it isn't one port after the other."
    ),
    enrol_only: bool = typer.Option(False, "--enrol-only", help="Enrol, and don't work yet."),
) -> None:
    """Enrol this device with a one-time token, and work for its fleet until stopped."""
    from sordino.core.trust import require_tls13

    require_tls13()  # before anything imports grpc
    from sordino.cli.signals import stop_by_signal
    from sordino.client.agent.home import default_folder, only_agent
    from sordino.client.agent.membership import join_fleet
    from sordino.client.agent.open import open_agent
    from sordino.client.agent.settings import CONFIG, load_settings
    from sordino.client.agent.timing import Surroundings

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    home = folder or default_folder()
    settings = load_settings(config or home / CONFIG)
    around = Surroundings(stop=stop_by_signal())
    with only_agent(home):
        identity = join_fleet(
            home,
            coordinator,
            token,
            around,
            fleet_address=fleet_address,
            name=settings.agent.display_name,
        )
        typer.echo(f"device: {identity.device_id}")
        if not enrol_only:
            open_agent(home, settings, identity, around).run()


def leave(
    folder: Path | None = FOLDER,
    reason: str = typer.Option("owner", help="owner, replaced or retired."),
) -> None:
    """Leave the fleet for good. The ledger stays: what was spent is not given back."""
    from sordino.core.trust import require_tls13

    require_tls13()
    from sordino.client.agent.home import default_folder
    from sordino.client.agent.membership import leave_fleet
    from sordino.client.agent.timing import Surroundings

    name = leave_fleet(folder or default_folder(), Surroundings(), reason=reason)
    typer.echo(f"{name} left; its ledger is still here")
