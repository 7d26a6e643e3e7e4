"""The heartbeat: at a constant interval, whatever the device is doing, so that it tells nothing."""

from __future__ import annotations

import logging
import threading

from sordino.client.agent.link import CallError
from sordino.client.agent.tasks import Desk
from sordino.client.agent.timing import MOST_WAIT_S
from sordino.protos.v1 import fleet_pb2

_LOG = logging.getLogger(__name__)


class Heart:
    """Beats in a thread of its own. A beat that fails is left out: the agent's own calls will say.

    Args:
        desk: Whose link it calls by; what it hears of cancelled tasks goes there.
    """

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._activity = fleet_pb2.ACTIVITY_IDLE
        self._task_id = ""
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._interval_s = 0.0
        self.renew_now = False
        self.beats = 0

    def start(self, interval_s: float) -> None:
        """Begin to beat, or beat at another interval from the next beat on."""
        self._interval_s = min(interval_s, MOST_WAIT_S)
        if self._thread is None:
            self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
            self._thread.start()

    def says(self, activity: fleet_pb2.Activity, task_id: str = "") -> None:
        """What the next beats say."""
        with self._lock:
            self._activity, self._task_id = activity, task_id

    def stop(self) -> None:
        """End."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(1.0)

    def _beat(self) -> None:
        around = self._desk.surroundings
        next_s = around.elapsed_s() + self._interval_s
        while not self._ended.wait(max(0.0, next_s - around.elapsed_s())):
            next_s = max(next_s, around.elapsed_s() - self._interval_s) + self._interval_s
            try:
                self._once()
            except CallError as error:
                _LOG.debug("a heartbeat failed: %s", error)

    def _once(self) -> None:
        with self._lock:
            body = fleet_pb2.HeartbeatRequest(activity=self._activity, task_id=self._task_id)
        answer = self._desk.link.call("Heartbeat", body, fleet_pb2.HeartbeatResponse, reopen=False)
        self._desk.link.clock.told(answer.now_unix_ms)
        self.beats += 1
        self.renew_now = self.renew_now or answer.renew_now
        if answer.HasField("cancelled"):
            self._desk.cancelled.add(answer.cancelled.task_id)
