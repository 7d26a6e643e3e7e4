"""The coordinator's rows as an operator is told them.

Under central trust the cohort is secret, and with it everything that it shows in: how many were
asked, answered or fell out and the bytes they sent, of the run's rounds; and of each device in a
fleet that has or had such a run, its failures, whether it rests, what was accepted of it, and the
heads of its ledger, which grows with each round that it takes part in.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from sordino.core.contract import Artefact, artefact_message
from sordino.core.errors import ContractError
from sordino.privacy.accounting import Guarantee
from sordino.protos.v1 import common_pb2, operator_pb2
from sordino.server import spending
from sordino.server.fleet_rounds import Fleet
from sordino.server.fleet_rounds.context import require
from sordino.server.store import (
    Accepted,
    ArtefactRow,
    Certificate,
    Device,
    Head,
    Reader,
    Round,
    Run,
    Task,
    Upload,
)

_ROUND_STATES: Final = {
    "open": operator_pb2.ROUND_STATE_OPEN,
    "collecting": operator_pb2.ROUND_STATE_OPEN,
    "closing": operator_pb2.ROUND_STATE_CLOSING,
    "aggregated": operator_pb2.ROUND_STATE_CLOSING,
    "published": operator_pb2.ROUND_STATE_DONE,
    "failed": operator_pb2.ROUND_STATE_FAILED,
    "given-up": operator_pb2.ROUND_STATE_GIVEN_UP,
}
_DROPPED: Final = ("rejected", "declined", "expired", "cancelled")
_MOST_REASONS: Final = 256
_MINUTE_MS: Final = 60_000


@dataclass(frozen=True, kw_only=True)
class View:
    """A look at a fleet, at one moment.

    Attributes:
        fleet: Whose files are named.
        rows: Its rows.
        online: The devices that are there.
        secret: Whether the fleet has or had a run under central trust.
    """

    fleet: Fleet
    rows: Reader
    online: Collection[str]
    secret: bool

    @classmethod
    def of(cls, fleet: Fleet, rows: Reader, online: Collection[str]) -> View:
        """Begin a look."""
        secret = rows.count(Run, trust="central") > 0
        return cls(fleet=fleet, rows=rows, online=online, secret=secret)

    def run_called(self, run_id: str) -> Run:
        """A run by its name. Looks at a metric are part of the run that buys them.

        Raises:
            ContractError: ``unknown-run``.
        """
        found = require(self.rows, Run, run_id)
        if found.measures:
            raise ContractError("unknown-run", f"{run_id} is the metric of {found.measures}")
        return found

    def looks_of(self, run: Run) -> Run | None:
        """The rounds in which a run's metric is looked at: kept as a run of their own."""
        return next(iter(self.rows.all(Run, measures=run.run_id)), None)

    def run(self, run: Run) -> operator_pb2.Run:
        """A run as it stands; of looks at a metric, the one that buys them."""
        if run.measures:
            run = require(self.rows, Run, run.measures)
        plan, looks = self.fleet.artefacts.read(run.plan), self.looks_of(run)
        metric = self.fleet.artefacts.read(looks.plan) if looks else b""
        return operator_pb2.Run(
            run_id=run.run_id,
            state=operator_pb2.RunState.Value(f"RUN_STATE_{run.state.upper()}"),
            rounds_done=run.rounds_done,
            rounds_planned=run.rounds_planned,
            plan=plan,
            plan_sha256=bytes.fromhex(run.plan),
            base=self._artefact(run.base, common_pb2.ARTEFACT_KIND_BASE_GGUF),
            adapter=self._adapter(run.adapter),
            cohort=run.cohort,
            min_updates=run.min_updates,
            started_at_unix_ms=run.started_ms,
            reason=run.reason,
            epsilon=epsilons(spending.of_plan(plan, metric)),
        )

    def round(self, row: Round) -> operator_pb2.Round:
        """A round that was opened."""
        view = operator_pb2.Round(
            run_id=row.run_id,
            round=row.round,
            state=_ROUND_STATES[row.state],
            opened_at_unix_ms=row.opened_ms,
            closed_at_unix_ms=row.closed_ms,
            adapter=self._adapter(row.adapter_after if row.state == "published" else ""),
        )
        if require(self.rows, Run, row.run_id).trust == "central":
            return view
        tasks = self.rows.all(Task, run_id=row.run_id, round=row.round)
        dropped = Counter(_word(task) for task in tasks if task.state in _DROPPED)
        sent = self.rows.total(Upload, "stored", task_id=tuple(task.task_id for task in tasks))
        view.asked = row.asked
        view.received = self.rows.count(Accepted, run_id=row.run_id, round=row.round)
        view.bytes_up = sent
        view.dropped.extend(
            operator_pb2.Dropped(reason=reason, count=count)
            for reason, count in sorted(dropped.items())[:_MOST_REASONS]
        )
        return view

    def device(self, row: Device) -> operator_pb2.Device:
        """A device as the coordinator knows it."""
        held = self.rows.all(Certificate, device_id=row.device_id)
        view = operator_pb2.Device(
            device_id=row.device_id,
            display_name=row.name,
            state=operator_pb2.DeviceState.Value(f"DEVICE_STATE_{self.standing(row).upper()}"),
            software=row.software,
            last_seen_unix_ms=self._seen(row),
            not_after_unix_ms=max((one.not_after_ms for one in held), default=0),
        )
        if self.secret:
            return view
        view.accepted = self.rows.count(Accepted, device_id=row.device_id)
        view.failures = row.failures
        head = self.last_head(row.device_id)
        if head is not None:
            view.ledger_head.CopyFrom(head_message(head))
        return view

    def standing(self, row: Device) -> str:
        """How a device stands, in a word."""
        shown = row.state in ("suspect", "revoked", "left")
        if shown or (row.state == "resting" and not self.secret):
            return row.state
        return "online" if row.device_id in self.online else "offline"

    def _seen(self, row: Device) -> int:
        """When a device was last heard of; where counts are secret, not to the second.

        Every device is heard of each minute, but one that answers also when it does.
        """
        return row.last_seen_ms // _MINUTE_MS * _MINUTE_MS if self.secret else row.last_seen_ms

    def last_head(self, device_id: str) -> Head | None:
        """The newest head that is kept of a device's ledger."""
        found = self.rows.all(Head, order="-entry_index", limit=1, device_id=device_id)
        return found[0] if found else None

    def require_heads(self) -> None:
        """Refuse to tell of ledgers where that would tell who took part.

        Raises:
            ContractError: ``not-permitted``.
        """
        if self.secret:
            raise ContractError(
                "not-permitted",
                "under central trust heads would show who took part: have each device's owner "
                "export them (sordino ledger export --head)",
            )

    def _adapter(self, sha256: str) -> common_pb2.Artefact | None:
        if not sha256:
            return None
        return self._artefact(sha256, common_pb2.ARTEFACT_KIND_ADAPTER)

    def _artefact(self, sha256: str, kind: common_pb2.ArtefactKind) -> common_pb2.Artefact:
        row = require(self.rows, ArtefactRow, sha256)
        return artefact_message(Artefact(sha256=sha256, size=row.size), kind)


def _word(task: Task) -> str:
    """Why a task brought no update; late ones apart from those that nobody waited for."""
    return "expired" if task.state == "expired" else task.reason or task.state


def head_message(row: Head) -> common_pb2.LedgerHead:
    """A head as it travels."""
    return common_pb2.LedgerHead(
        entry_index=row.entry_index,
        entry_sha256=bytes.fromhex(row.entry_sha256),
        public_key=bytes.fromhex(row.public_key),
        signature=bytes.fromhex(row.signature),
    )


def epsilons(found: Guarantee) -> list[operator_pb2.Epsilon]:
    """Both units, side by side; nothing where there is no guarantee at all."""
    if found.trust == "none":
        return []
    both = (("record", found.record_epsilon), ("user", found.user_epsilon))
    return [
        operator_pb2.Epsilon(
            epsilon=epsilon if math.isfinite(epsilon) else None,
            delta=found.delta,
            unit=unit,
            neighbouring=found.neighbouring,
            sampling=found.sampling,
            accountant=found.accountant,
            scope=found.composition,
            trust=found.trust,
        )
        for unit, epsilon in both
    ]
