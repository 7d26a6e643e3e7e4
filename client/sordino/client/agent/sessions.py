"""The device's session for a task's base: the installed one, or one that was fetched.

Sessions stay open and their bases warm, so that the next task of a run begins at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sordino.client.agent.settings import DeviceSettings
from sordino.client.charged import LEDGER
from sordino.client.contract import OpenSession, Session
from sordino.core.contract import Artefact, TaskOrder
from sordino.core.errors import ModelError, PolicyRefusedError, expected
from sordino.privacy.policy.rules import EVERY

FetchBase = Callable[[Artefact], Path]
"""Finds a base's file, or fetches it."""


@dataclass(frozen=True)
class Ready:
    """A session, and the node configuration by which the ClientApp finds the same one."""

    session: Session
    config: Mapping[str, Any]


class Sessions:
    """Opens sessions by base.

    Args:
        settings: The device's.
        open_session: Opens one, and gives the same one for the same configuration.
    """

    def __init__(self, settings: DeviceSettings, open_session: OpenSession) -> None:
        self._settings = settings
        self._open = open_session

    @property
    def ledger(self) -> Path:
        """The device's ledger, whichever base it trains on."""
        return self.installed().session.state_dir / LEDGER

    def installed(self) -> Ready:
        """The session on the base that the owner installed.

        Raises:
            SordinoError: Its model, data or policy can't be had.
        """
        return self._ready(self._settings.node_config())

    def of_base(self, order: TaskOrder, fetch: FetchBase) -> Ready:
        """The session on a task's base.

        Raises:
            ModelError: It isn't the installed one, and the owner doesn't let others be fetched.
            PolicyRefusedError: ``policy-base``: the policy doesn't allow it; nothing is fetched.
            SordinoError: It can't be opened.
        """
        ready, base = self.installed(), order.base
        if base.sha256 == ready.session.base_sha256:
            return ready
        if not self._settings.agent.fetch_base or order.base_kind != "gguf":
            required = f"= {ready.session.base_sha256}, which is installed"
            raise ModelError(
                expected(
                    "base", base.sha256, required, "install it; agent.fetch_base allows GGUF files"
                )
            )
        allowed = ready.session.policy.base_models
        if EVERY not in allowed and base.sha256 not in allowed:
            raise PolicyRefusedError("policy-base", "the device's policy doesn't allow this base")
        return self._ready(self._settings.node_config(model=str(fetch(base))))

    def _ready(self, config: Mapping[str, Any]) -> Ready:
        return Ready(self._open(config), config)
