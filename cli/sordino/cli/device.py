"""`sordino device`: what this device is to its fleet, and what it can say of itself."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

if TYPE_CHECKING:
    from sordino.client.device import Calibration


class Format(StrEnum):
    """How to print."""

    TEXT = "text"
    JSON = "json"


@dataclass(frozen=True, kw_only=True)
class DeviceView:
    """What is shown.

    Attributes:
        folder: The agent's.
        device_id: Its name in the fleet; empty: it is no member.
        fleet: Where its coordinator is; empty: nobody told it.
        certificate_ends: Empty without one.
        task: The round at hand; empty: none.
        ledger_entries: How many entries its ledger has.
        power: ``mains``, ``battery``, ``charging`` or ``unknown``.
        conditions: What a policy may ask, as far as it is known.
        energy_source: Where energy is read now.
        celsius: The hottest sensor; None: there is none.
        calibration: The kept figures of the synthetic batch; None: there are none.
    """

    folder: str
    device_id: str
    fleet: str
    certificate_ends: str
    task: str
    ledger_entries: int
    power: str
    conditions: dict[str, bool]
    energy_source: str
    celsius: float | None
    calibration: Calibration | None


def device(
    folder: Path | None = typer.Option(
        None, help="The device's folder; else the one in the user's state folder."
    ),
    calibrate: bool = typer.Option(
        False, "--calibrate", help="Run the synthetic batch on the configured model first."
    ),
    config: Path | None = typer.Option(
        None, help="With --calibrate: the settings; else device.toml in the folder."
    ),
    output: Format = typer.Option(Format.TEXT, "--format", help="How to print."),
) -> None:
    """Show this device: its membership, its state, and what was measured of it.

    Nothing is sent. What real tasks take is in state/observations.jsonl and stays here.
    """
    from sordino.core.trust import require_tls13

    require_tls13()  # what reads a member's files imports grpc
    from sordino.client.agent.home import default_folder

    home = folder or default_folder()
    if calibrate:
        _calibrate(home, config)
    view = look(home)
    if output is Format.JSON:
        typer.echo(json.dumps(asdict(view), indent=2))
        return
    console = Console()
    for line in _lines(view):
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def look(home: Path) -> DeviceView:
    """Look at a device's folder and at the machine; changes nothing."""
    from sordino.client.agent.heads import signed_head
    from sordino.client.agent.home import load_whereabouts
    from sordino.client.agent.journal import peek
    from sordino.client.device import (
        celsius,
        find_gauge,
        kept_calibration,
        power_source,
        read_conditions,
    )
    from sordino.client.identity import load_identity
    from sordino.core.errors import TrustError

    name = fleet = ends = ""
    try:
        fleet = load_whereabouts(home).fleet
        identity = load_identity(home, now_unix_ms=0)  # one that has ended is shown, too
        name, ends = identity.device_id, f"{identity.certificates[0].not_valid_after_utc:%F}"
    except TrustError:
        pass
    order = peek(home)
    head = signed_head(home / "state" / "ledger.db")
    return DeviceView(
        folder=str(home),
        device_id=name,
        fleet=fleet,
        certificate_ends=ends,
        task=f"round {order.round} of run {order.run_id}" if order else "",
        ledger_entries=head.receipt.entry_index + 1 if head else 0,
        power=power_source(),
        conditions=read_conditions(),
        energy_source=find_gauge().source,
        celsius=celsius(),
        calibration=kept_calibration(home),
    )


def _calibrate(home: Path, config: Path | None) -> None:
    from sordino.client.agent.settings import CONFIG, load_settings
    from sordino.client.device import save_calibration
    from sordino.client.device.synthetic import calibrate
    from sordino.client.session import open_session

    settings = load_settings(config or home / CONFIG).in_folder(home)
    session = open_session(settings.node_config())
    save_calibration(home, calibrate(session.base, session.performance))


def _lines(view: DeviceView) -> list[str]:
    member = f"{view.device_id}, until {view.certificate_ends}" if view.device_id else "no"
    known = [name if holds else f"not {name}" for name, holds in view.conditions.items()]
    warm = "no sensor" if view.celsius is None else f"{view.celsius:.1f} °C"
    lines = [
        f"folder:      {view.folder}",
        f"member:      {member}",
        f"coordinator: {view.fleet or 'unknown'}",
        f"task:        {view.task or 'none'}",
        f"ledger:      {view.ledger_entries} entries",
        f"power:       {view.power}",
        f"conditions:  {', '.join(known) or 'none is known'}",
        f"energy:      {view.energy_source}",
        f"temperature: {warm}",
    ]
    return lines + _figures(view.calibration)


def _figures(figures: Calibration | None) -> list[str]:
    if figures is None:
        return ["calibration: none: sordino device --calibrate"]
    energy, idle = figures.joules_per_token, figures.idle_watts
    joules = "unavailable" if energy is None else f"{energy:.4g} J ({figures.energy_source})"
    return [
        f"calibration: base {figures.base_sha256[:12]}, a synthetic batch",
        f"  tokens a second: {figures.tokens_per_second:.1f}",
        f"  peak memory:     {figures.peak_memory_bytes / 1e6:.0f} MB",
        f"  energy a token:  {joules}",
        f"  power at rest:   {'unavailable' if idle is None else f'{idle:.2f} W'}",
    ]
