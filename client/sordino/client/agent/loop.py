"""The agent: greets, finishes what is owed, waits for work, does it; until it is told to stop.

    Hello ─> finish ─> renew if due ─> PullTask ─> a task ─> finish ─> ...
      ^                                                 │
      └──────────── wait, longer each time <─── any call that broke

After a break, a crash or a reboot alike, the way begins at the top. What is at hand is on disk.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from sordino.client.agent.greeting import greeting
from sordino.client.agent.heads import check_not_rolled_back
from sordino.client.agent.heartbeat import Heart
from sordino.client.agent.link import CALL_S, CallError
from sordino.client.agent.settings import DeviceSettings
from sordino.client.agent.tasks import Desk, begin, finish
from sordino.client.agent.timing import Backoff
from sordino.client.device import Calibration, read_conditions
from sordino.client.identity import accept_renewal, renewal_request
from sordino.core import contract
from sordino.core.contract import TaskOrder
from sordino.core.errors import ContractError, TrustError
from sordino.privacy.policy import Conditions
from sordino.protos.v1 import fleet_pb2

MOST_WAIT_MS: Final = 3_600_000  # the contract's
NOT_NOW_S: Final = 60.0
"""How long an agent waits before it looks again whether its owner lets it work now."""
_LOG = logging.getLogger(__name__)


class Agent:
    """One device at work for one fleet.

    Args:
        folder: The agent's.
        settings: The owner's.
        desk: What tasks are done with.
        calibration: Figures that may be sent; None: none may.
        conditions: What is known of the device now.
    """

    def __init__(
        self,
        folder: Path,
        settings: DeviceSettings,
        desk: Desk,
        *,
        calibration: Calibration | None = None,
        conditions: Callable[[], Conditions] = read_conditions,
    ) -> None:
        self.folder = folder
        self.settings = settings
        self.desk = desk
        self.heart = Heart(desk)
        self._calibration = calibration
        self._conditions = conditions
        self._around = desk.surroundings
        self._clock = desk.link.clock
        self._backoff = Backoff(self._around.chance)
        self._wait_ms = 0
        desk.progress = self._backoff.reset

    def run(self) -> None:
        """Work until `Surroundings.stop` is set.

        Raises:
            TrustError: The device is no member any more, or its certificate ended.
            LedgerError: The ledger can't be believed: an older copy was put back.
            SordinoError: The device's model, data or policy can't be had.
        """
        self.desk.sessions.installed()  # what is wrong with the device shows before it greets
        threading.Thread(target=self._end_waits, name="end-waits", daemon=True).start()
        try:
            while not self._around.stop.is_set():
                try:
                    self._greet()
                    self._work()
                except CallError as error:
                    self._after(error)
                except OSError as error:
                    self._wait(f"the disk: {error}", self._backoff.next_s())
        finally:
            self.heart.stop()
            self.desk.link.close()

    def _end_waits(self) -> None:
        """When the agent is to stop, let go of the stream that it waits by."""
        self._around.stop.wait()
        self.desk.link.close()

    def _greet(self) -> None:
        node, agent = self.settings.node, self.settings.agent
        ledger = self.desk.sessions.ledger
        self._check_certificate()
        hello = greeting(
            ledger,
            memory_mb=node.memory_mb,
            storage_mb=agent.storage_mb,
            calibration=self._calibration if agent.send_calibration else None,
        )
        terms = self.desk.link.call("Hello", hello, fleet_pb2.HelloResponse)
        self._clock.told(terms.now_unix_ms)
        if terms.HasField("known_ledger_head"):
            self._check_ledger(ledger, terms)
        self._wait_ms = min(terms.max_wait_ms, MOST_WAIT_MS)
        self.desk.chunk_bytes = terms.chunk_bytes
        self.desk.at("hello:answered")
        self.heart.start(terms.heartbeat_interval_ms / 1000)

    def _work(self) -> None:
        """Do one task after another, until a call breaks or the agent is to stop."""
        while not self._around.stop.is_set():
            finish(self.desk)
            self._renew_if_due()
            if not self._may_work():
                self.heart.says(fleet_pb2.ACTIVITY_NOT_NOW)
                self._around.pause(NOT_NOW_S)
                continue
            self.heart.says(fleet_pb2.ACTIVITY_IDLE)
            order = self._pull()
            self._backoff.reset()
            if order is not None:
                self.heart.says(fleet_pb2.ACTIVITY_WORKING, order.task_id)
                begin(self.desk, order)

    def _pull(self) -> TaskOrder | None:
        """Wait for a task, for as long as the coordinator lets us; None: there was none."""
        body = fleet_pb2.PullTaskRequest(wait_ms=self._wait_ms)
        timeout_s = self._wait_ms / 1000 + CALL_S
        kind = fleet_pb2.PullTaskResponse
        rest_s = 0.0
        for event in self.desk.link.stream("PullTask", body, kind, timeout_s=timeout_s):
            if event.HasField("task"):
                return self._read(event)
            if event.HasField("still_here"):
                self._clock.told(event.still_here.now_unix_ms)
                rest_s = event.still_here.rest_ms / 1000
            if rest_s or self._around.stop.is_set() or self._is_due() or not self._may_work():
                break
        if rest_s:
            _LOG.info("the coordinator lets this device rest for %.0f s", rest_s)
            self._around.pause(rest_s)
        return None

    def _read(self, event: fleet_pb2.PullTaskResponse) -> TaskOrder | None:
        try:
            order = contract.read_task(event.task)
        except ContractError as error:
            _LOG.warning("task %s declined: %s", event.task.task_id, error)
            body = fleet_pb2.DeclineRequest(task_id=event.task.task_id, reason="malformed-task")
            self.desk.link.call(
                "Decline",
                body,
                fleet_pb2.DeclineResponse,
                run_id=event.task.run_id,
                number=event.task.round,
            )
            return None
        self.desk.at("task:pulled")
        return order

    def _may_work(self) -> bool:
        """Whether the owner lets the device work now: by its settings, and by the policy."""
        asked = (self.settings.work, self.desk.sessions.installed().session.policy.work)
        names = ("charging", "idle", "unmetered")
        wanted = [name for name in names if any(getattr(work, name) for work in asked)]
        if not wanted:
            return True
        now = self._conditions()
        return all(now.get(name) is True for name in wanted)

    def _is_due(self) -> bool:
        return self.heart.renew_now or self.desk.link.identity.is_due(self._clock.now_ms())

    def _renew_if_due(self) -> None:
        if not self._is_due():
            return
        present = self.desk.link.identity
        request = renewal_request(self.folder, present)
        response = self.desk.link.call("Renew", request, fleet_pb2.RenewResponse)
        fresh = accept_renewal(self.folder, present, response)
        self.desk.at("certificate:renewed")
        self.heart.renew_now = False
        self.desk.link.become(fresh)
        _LOG.info("a new certificate, good until %s", fresh.certificates[0].not_valid_after_utc)

    def _check_certificate(self) -> None:
        identity = self.desk.link.identity
        if self._clock.now_ms() > identity.not_after_unix_ms + contract.MAX_CLOCK_SKEW_MS:
            ended = identity.certificates[0].not_valid_after_utc.isoformat()
            raise TrustError(f"the certificate ended on {ended}: join with a new token")

    def _check_ledger(self, ledger: Path, terms: fleet_pb2.HelloResponse) -> None:
        try:
            check_not_rolled_back(ledger, contract.read_head(terms.known_ledger_head))
        except ContractError as error:
            raise CallError("Hello", None, str(error)) from error

    def _after(self, error: CallError) -> None:
        """Obey a failure: stop for good, or wait."""
        if error.lasting:
            raise TrustError(
                f"{self.desk.link.address} lets this device in no more ({error}): ask its operator"
            ) from error
        self._wait(str(error), self._backoff.next_s(error.failure))

    def _wait(self, why: str, wait_s: float) -> None:
        if not self._around.stop.is_set():
            _LOG.warning("%s; again in %.1f s", why, wait_s)
            self._around.pause(wait_s)
