"""From a folder and its settings to an agent that is ready to run."""

from __future__ import annotations

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
from sordino.client.contract import OpenSession
from sordino.client.identity import Identity
from sordino.privacy.ledger import Hook, no_hook

MB: Final = 10**6


def open_agent(
    folder: Path,
    settings: DeviceSettings,
    identity: Identity,
    surroundings: Surroundings,
    *,
    app: object = client_app,
    open_session: OpenSession = warm_session,
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
    return Agent(folder, settings, desk)
