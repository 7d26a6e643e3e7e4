"""All that the page and the figures tell, at one moment."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sordino.core.errors import SordinoError
from sordino.core.trust import not_after_ms
from sordino.protos.v1 import operator_pb2
from sordino.server.enroll import read_server_certificate
from sordino.server.enroll.authority import DAY_MS
from sordino.server.fleet_rounds import Fleet
from sordino.server.operator.alarms import KINDS, alarm_of, found
from sordino.server.operator.looks import looks_taken
from sordino.server.operator.tables import Table, round_table, run_table
from sordino.server.operator.views import View
from sordino.server.service import ServiceFigures
from sordino.server.status.spent import Group, Spent
from sordino.server.store import ArtefactRow, Device, Event, Round, Run
from sordino.server.store.records import FINAL_ROUNDS

MOST_RUNS: Final = 20
MOST_ROUNDS: Final = 12
_MOST_ALARMS: Final = 10
_MOST_KEPT: Final = 10 * MOST_RUNS * MOST_ROUNDS
_ALARMS_MS: Final = 7 * DAY_MS
_STATES: Final = ("online", "offline", "resting", "suspect", "revoked", "left")


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """A run.

    Attributes:
        run: As `run_table` has it.
        groups: What its devices have released.
        rounds: The newest, as `round_table` has them.
        looks: What was measured of its metric, as `looks_taken` has it, the newest first.
    """

    run: Table
    groups: tuple[Group, ...]
    rounds: tuple[Table, ...]
    looks: tuple[Table, ...]


@dataclass(frozen=True, kw_only=True)
class AlarmStatus:
    """Something that somebody should look at; `at_ms` is None for what is so now."""

    reason: str
    message: str
    at_ms: int | None = None


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A coordinator at one moment.

    Attributes:
        at_ms: When, by its clock.
        ready: Whether it takes calls.
        secret: Whether counts are withheld, for there is or was a run under central trust.
        service: What the service for devices has counted.
        devices: How many there are in each state.
        runs: The newest first, at most `MOST_RUNS`.
        run_states: How many runs there are in each state.
        alarms: Those that hold now, and the newest of a week.
        free_bytes: What the disk has left.
        artefact_bytes: What the files take.
        certificate_ends_ms: The coordinator's.
        events: The number of the last event.
    """

    at_ms: int
    ready: bool
    secret: bool
    service: ServiceFigures
    devices: Mapping[str, int]
    runs: tuple[RunStatus, ...]
    run_states: Mapping[str, int]
    alarms: tuple[AlarmStatus, ...]
    free_bytes: int
    artefact_bytes: int
    certificate_ends_ms: int
    events: int


class Snapshots:
    """Looks at a coordinator, once a while however often it is asked. Any thread may ask.

    Args:
        fleet: Rows and files.
        folder: With the coordinator's certificate.
        figures: What the service for devices has counted.
        online: The devices that are there.
        ready: Whether it takes calls.
        kept_s: How long a look is good.
    """

    def __init__(
        self,
        fleet: Fleet,
        folder: Path,
        *,
        figures: Callable[[], ServiceFigures],
        online: Callable[[], Collection[str]],
        ready: Callable[[], bool],
        kept_s: float = 1.0,
    ) -> None:
        self._fleet, self._folder = fleet, folder
        self._figures, self._online, self._ready = figures, online, ready
        self._kept_s = kept_s
        self._spent = Spent(fleet)
        self._over: dict[tuple[str, int], Table] = {}  # rounds that don't change any more
        self._lock = threading.Lock()
        self._last: tuple[float, Snapshot] | None = None

    def ready(self) -> bool:
        """Whether the coordinator takes calls."""
        return self._ready()

    def now(self) -> Snapshot:
        """The present state, or what it was a moment ago.

        Raises:
            SordinoError: The store or the certificate can't be read.
        """
        with self._lock:
            if self._last is None or time.monotonic() - self._last[0] > self._kept_s:
                self._last = (time.monotonic(), self._look())
            return self._last[1]

    def _look(self) -> Snapshot:
        fleet = self._fleet
        with fleet.store.read() as rows:
            view = View.of(fleet, rows, self._online())
            runs = sorted(rows.all(Run, measures=""), key=lambda run: (-run.started_ms, run.run_id))
            states = Counter(view.standing(device) for device in rows.all(Device))
            return Snapshot(
                at_ms=fleet.now_ms(),
                ready=self._ready(),
                secret=view.secret,
                service=self._figures(),
                devices={state: states[state] for state in _STATES},
                runs=tuple(self._run(view, run) for run in runs[:MOST_RUNS]),
                run_states=Counter(run.state for run in runs),
                alarms=(*self._alarms_now(), *self._alarms_before(view)),
                free_bytes=fleet.artefacts.free_bytes(),
                artefact_bytes=rows.total(ArtefactRow, "size"),
                certificate_ends_ms=not_after_ms(read_server_certificate(self._folder).certificate),
                events=rows.largest(Event, "number"),
            )

    def _run(self, view: View, run: Run) -> RunStatus:
        newest = view.rows.all(Round, order="-round", limit=MOST_ROUNDS, run_id=run.run_id)
        return RunStatus(
            run=run_table(view.run(run)),
            groups=self._spent.groups(view.rows, run),
            rounds=tuple(self._round(view, one) for one in newest if one.opened_ms),
            looks=tuple(reversed(looks_taken(view.rows, run)))[:MOST_ROUNDS],
        )

    def _round(self, view: View, one: Round) -> Table:
        """A round's table; of one that is over it is made once."""
        known = self._over.get((one.run_id, one.round))
        if known is not None:
            return known
        table = round_table(view.round(one))
        if one.state in FINAL_ROUNDS:
            if len(self._over) >= _MOST_KEPT:
                self._over.clear()
            self._over[one.run_id, one.round] = table
        return table

    def _alarms_now(self) -> list[AlarmStatus]:
        try:
            holding = list(found(self._fleet, self._folder))
        except SordinoError as error:
            holding = [("machine", str(error))]
        return [AlarmStatus(reason=reason, message=message) for reason, message in holding]

    def _alarms_before(self, view: View) -> list[AlarmStatus]:
        """Alarms of the last days, but for those of the machine, which hold now or don't."""
        since = self._fleet.now_ms() - _ALARMS_MS
        rows = view.rows.all(Event, order="-number", limit=_MOST_ALARMS, kind=KINDS)
        told = [(row, alarm_of(row)) for row in rows if row.at_ms >= since]
        return [_status(row, alarm) for row, alarm in told if alarm is not None]


def _status(row: Event, alarm: operator_pb2.Alarm) -> AlarmStatus:
    return AlarmStatus(reason=alarm.reason, message=alarm.message, at_ms=row.at_ms)
