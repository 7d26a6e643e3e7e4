"""The strategy: what a round sends, which replies count, and what the next adapter is.

`SordinoStrategy` is a Flower `Strategy`, so Flower's own loop (`Strategy.start`) runs it. That loop
has no start round and can't stop below a minimum of updates: `rounds.run_rounds` can.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from sordino.core import adapters, app
from sordino.core.config import FederationConfig, LoraConfig, TrainConfig
from sordino.core.errors import (
    PlanError,
    RoundFailedError,
    WireError,
    expected,
)
from sordino.core.records import AdapterManifest, Tensors, TrainTask, Update, check_tensors
from sordino.core.wire import Envelope, decode_update, encode_task
from sordino.privacy.plan import AnyPlan
from sordino.server import aggregate
from sordino.server.metrics import Looks
from sordino.server.release import Releases, is_central
from sordino.server.replies import Asked, Dropped, ask, malformed

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RoundReport:
    """What the coordinator saw of a round. Nothing here was told by a client about its data."""

    round: int
    sent: int
    received: int  # valid updates, which is what was averaged
    dropped: tuple[Dropped, ...]
    bytes_down: int
    bytes_up: int
    wall_s: float
    settled: Literal["", "released", "abandoned"] = ""  # charged before a crash: nobody was asked

    @property
    def reasons(self) -> dict[str, int]:
        """How many messages were dropped for each reason."""
        return dict(Counter(drop.reason for drop in self.dropped))


AnySum = aggregate.UpdateSum | aggregate.PrivateSum


@dataclass(frozen=True)
class _OpenRound:
    """A round between its tasks and its aggregate."""

    number: int
    adapter: Tensors
    asked: Asked


class SordinoStrategy(Strategy):
    """Uniform averaging of validated updates; a bad reply is dropped and the round goes on.

    Args:
        plan: The run's plan. It decides what clients charge and how large an update may be.
        manifest: All tensors of the adapter.
        base_sha256: Hash of the base model that the adapter belongs to.
        lora: The adapter's settings.
        train: The local optimizer.
        federation: The minimum of updates and the round's timeout, which is each task's time to
            live: a slow device doesn't spend budget on a result that nobody takes. The minimum is
            not for central trust: there a missing device counts as zero, and whether a round fails
            would tell how many answered.
        releases: For central trust: the coordinator's ledger and randomness.
        looks: The looks at the metric that the run buys, under local trust; None: it buys none.

    Raises:
        PlanError: The plan's steps are not the optimizer's, `releases` is missing or too much, or
            there are `looks` under central trust.
    """

    def __init__(
        self,
        *,
        plan: AnyPlan,
        manifest: AdapterManifest,
        base_sha256: str,
        lora: LoraConfig,
        train: TrainConfig,
        federation: FederationConfig,
        releases: Releases | None = None,
        looks: Looks | None = None,
    ) -> None:
        if (releases.plan if releases else None) != (plan if is_central(plan) else None):
            raise PlanError("expected a central plan's own releases, and none for another plan")
        if looks is not None and is_central(plan):
            required = "None with a central plan"
            todo = "its noise is added on the device and its unit is the record"
            raise PlanError(expected("looks", looks.plan.metric, required, todo))
        if plan.steps_per_round != train.local_steps:
            required = f"= train.local_steps ({train.local_steps})"
            raise PlanError(expected("plan.steps_per_round", plan.steps_per_round, required))
        self.plan = plan
        self.manifest = manifest
        self.base_sha256 = base_sha256
        self.lora = lora
        self.train = train
        self.federation = federation
        self.releases = releases
        self.looks = looks
        self.last_report: RoundReport | None = None
        self._open: _OpenRound | None = None

    def trained(self, round_number: int) -> AdapterManifest:
        """The tensors that train in a round."""
        return adapters.trained_manifest(self.manifest, self.lora.aggregation, round_number)

    def norm_bound(self, round_number: int) -> float:
        """The largest norm of an honest update of a round."""
        parameters = self.trained(round_number).parameter_count
        return aggregate.norm_bound(self.plan, self.train, parameters, round_number=round_number)

    def task(self, round_number: int, adapter: Tensors) -> TrainTask:
        """The round's task, the same for every client."""
        return TrainTask(
            run_id=self.plan.run_id,
            round=round_number,
            plan=self.plan.canonical(),
            base_sha256=self.base_sha256,
            lora=self.lora,
            train=self.train,
            manifest_sha256=self.manifest.sha256,
            tensors=adapters.changed_tensors(adapter, self.manifest, self.lora.init_seed),
        )

    def open_round(
        self, round_number: int, adapter: Tensors, node_ids: Iterable[int], *, drawn: bool = False
    ) -> Sequence[Message]:
        """Make the round's messages, one a node; all share the same content.

        Args:
            round_number: From 1.
            adapter: All tensors, as they are before the round.
            node_ids: Who may be asked.
            drawn: Whether they are those whom the plan's secret coins have picked already.

        Raises:
            PlanError: The round is not in the plan, or a node is named twice.
        """
        if not 1 <= round_number <= self.plan.rounds:
            raise PlanError(expected("round", round_number, f"in 1..{self.plan.rounds}"))
        cohort = list(node_ids)
        if len(set(cohort)) < len(cohort):  # a client's second answer would count twice
            raise PlanError(expected("node_ids", cohort[:8], "without repeats"))
        check_tensors(adapter, self.manifest)
        asked = ask(
            app.to_records(encode_task(self.task(round_number, adapter))),
            cohort if drawn else self._asked(round_number, cohort),
            message_type=MessageType.TRAIN,
            ttl_s=self.federation.round_timeout_s,
            number=round_number,
        )
        self._open = _OpenRound(round_number, adapter, asked)
        return asked.messages

    def close_round(self, replies: Iterable[Message]) -> tuple[Tensors, RoundReport]:
        """Validate and average the replies as they come, and make the next adapter.

        Memory does not grow with the number of replies, if `replies` doesn't hold on to them.

        Raises:
            RoundFailedError: Fewer valid updates than the minimum; nothing is changed.
            PlanError: No round is open.
        """
        opened, self._open = self._open, None
        if opened is None:
            raise PlanError("expected an open round: call open_round first")
        if self.releases is not None:
            return self._release(opened, replies, self.releases)
        total = aggregate.UpdateSum(
            self.trained(opened.number),
            bound=self.norm_bound(opened.number),
            cohort=max(len(opened.asked.messages), 1),
        )
        self._collect(opened, replies, total)
        self.last_report = report = _report(opened, total.count)
        if total.count < self.federation.min_updates:
            raise RoundFailedError(
                f"round {opened.number}: expected at least {self.federation.min_updates} valid "
                f"updates, got {total.count} of {report.sent}; dropped: {report.reasons or 'none'}"
            )
        return aggregate.apply_mean(opened.adapter, total.mean()), report

    def _asked(self, round_number: int, nodes: list[int]) -> list[int]:
        """Who is asked in a round: all, or those whom the plan's secret coins pick."""
        return nodes if self.releases is None else self.releases.ask(round_number, nodes)

    def _release(
        self, opened: _OpenRound, replies: Iterable[Message], releases: Releases
    ) -> tuple[Tensors, RoundReport]:
        total = aggregate.PrivateSum(self.trained(opened.number), releases.plan)
        self._collect(opened, replies, total)
        self.last_report = report = _report(opened, total.count)
        return releases.release(opened.number, opened.adapter, total), report

    def _collect(self, opened: _OpenRound, replies: Iterable[Message], total: AnySum) -> None:
        bound = self.norm_bound(opened.number)

        def accept(content: Envelope) -> None:
            update = _update(content)
            aggregate.validate_update(
                update,
                round_number=opened.number,
                plan=self.plan,
                trained=total.trained,
                bound=bound,
            )
            total.add(update.tensors)

        opened.asked.collect(replies, accept)

    # --- Flower's Strategy ---------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Flower's hook: `open_round` for all nodes that the grid knows; `config` isn't used."""
        adapter = app.from_records(RecordDict({app.FIELDS: ConfigRecord(), app.TENSORS: arrays}))
        return self.open_round(server_round, dict(adapter.tensors), sorted(grid.get_node_ids()))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Flower's hook: `close_round`. Nothing measured comes with an update."""
        adapter, _ = self.close_round(replies)
        return to_arrays(adapter), None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Flower's hook: the paid look that follows this round, if the run buys one.

        Nothing else: a loss on private records would be a release that nobody accounted.
        """
        if self.looks is None:
            return []
        adapter = app.from_records(RecordDict({app.FIELDS: ConfigRecord(), app.TENSORS: arrays}))
        return self.looks.open(server_round, dict(adapter.tensors), sorted(grid.get_node_ids()))

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Flower's hook: the mean of the noised answers; None where nothing was asked."""
        if self.looks is None or self.looks.number(server_round) is None:
            return None
        report = self.looks.close(replies)
        return None if report.value is None else MetricRecord({report.metric: report.value})

    def summary(self) -> None:
        """Log what the run is."""
        log.info(
            "plan %s: %d rounds of %d steps, %s, %d parameters, at least %d updates a round",
            self.plan.sha256[:12],
            self.plan.rounds,
            self.plan.steps_per_round,
            self.lora.aggregation,
            self.manifest.parameter_count,
            self.federation.min_updates,
        )


def to_arrays(adapter: Tensors) -> ArrayRecord:
    """The adapter as Flower's record, for `Strategy.start`."""
    record = app.to_records(Envelope({}, adapter))[app.TENSORS]
    if not isinstance(record, ArrayRecord):
        raise WireError(f"expected {app.TENSORS} to be an ArrayRecord")
    return record


def _update(content: Envelope) -> Update:
    try:
        return decode_update(content)
    except WireError as error:
        raise malformed(error) from error


def _report(opened: _OpenRound, received: int) -> RoundReport:
    asked = opened.asked
    return RoundReport(
        round=opened.number,
        sent=len(asked.messages),
        received=received,
        dropped=tuple(asked.dropped),
        bytes_down=asked.bytes_down,
        bytes_up=asked.bytes_up,
        wall_s=asked.wall_s,
    )
