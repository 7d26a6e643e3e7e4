"""From a folder and its settings to an agent that is ready to run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from sordino.client.agent.cache import ArtefactCache
from sordino.client.agent.home import ARTEFACTS, load_whereabouts
from sordino.client.agent.journal import Journal
from sordino.client.agent.link import Link
from sordino.client.agent.loop import Agent
from sordino.client.agent.sessions import Sessions
from sordino.client.agent.settings import DeviceSettings
from sordino.client.agent.tasks import Desk
from sordino.client.agent.timing import FleetClock, Surroundings
from sordino.client.app import app as client_app
from sordino.client.app import warm_session
from sordino.client.contract import OpenSession, Session
from sordino.client.device import (
    Calibration,
    load_calibration,
    read_conditions,
    save_calibration,
)
from sordino.client.identity import Identity
from sordino.client.session import ClientSession
from sordino.privacy.ledger import Hook, no_hook
from sordino.privacy.policy import Conditions

MB: Final = 10**6


def open_agent(
    folder: Path,
    settings: DeviceSettings,
    identity: Identity,
    surroundings: Surroundings,
    *,
    app: object = client_app,
    open_session: OpenSession = warm_session,
    conditions: Callable[[], Conditions] = read_conditions,
    at: Hook = no_hook,
) -> Agent:
    """Put an agent together.

    Args:
        folder: The agent's, whose lock is held.
        settings: The owner's.
        identity: As `join_fleet` gave it.
        surroundings: Time and chance.
        app: The ClientApp.
        open_session: Opens the sessions that `app` uses.
        conditions: What is known of the device now.
        at: Told each step as it is reached.
    """
    settings = settings.in_folder(folder)
    where = load_whereabouts(folder)
    desk = Desk(
        link=Link(where.fleet, identity, FleetClock(surroundings.wall_ms)),
        journal=Journal(folder),
        cache=ArtefactCache(folder / ARTEFACTS, settings.agent.storage_mb * MB),
        sessions=Sessions(settings, open_session),
        app=app,
        surroundings=surroundings,
        seeded=settings.node.noise_seed >= 0,
        at=at,
    )
    calibration = None
    if settings.agent.send_calibration:
        calibration = calibrated(folder, desk.sessions.installed().session)
    return Agent(folder, settings, desk, calibration=calibration, conditions=conditions)


def calibrated(folder: Path, session: Session) -> Calibration | None:
    """The figures of the synthetic batch on the installed base, measured once.

    Returns:
        None for a session without a model of its own.
    """
    known = load_calibration(folder, session.base_sha256)
    if known is not None or not isinstance(session, ClientSession):
        return known
    from sordino.client.device.synthetic import calibrate  # noqa: PLC0415 - seldom, and large

    figures = calibrate(session.base, session.performance)
    save_calibration(folder, figures)
    return figures
