"""Paid looks at a metric: what is asked after a round, which answers count, and their mean.

Each client clips, noises and charges its own value (`privacy.plan.MetricPlan`); what arrives is
private by itself, and the mean is post-processing.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from sordino.core import adapters, app
from sordino.core.config import ExperimentConfig, LoraConfig
from sordino.core.errors import PlanError, WireError, expected
from sordino.core.records import AdapterManifest, MetricTask, Tensors, check_tensors
from sordino.core.wire import Envelope, decode_measurement, encode_metric_task
from sordino.privacy.plan import MetricPlan
from sordino.server.aggregate import validate_measurement
from sordino.server.replies import Asked, Dropped, ask, malformed

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LookReport:
    """What came of one look.

    Attributes:
        look: Which look of the metric's plan.
        round: The round whose adapter was measured.
        metric: What was measured.
        value: The uniform mean of the valid answers; None if there is none.
        noise_std: The standard deviation that the clients' noise has in that mean.
        sent: How many were asked.
        received: How many valid answers there are.
        dropped: The others.
        bytes_down: Sent.
        bytes_up: Received.
        wall_s: How long it took.
    """

    look: int
    round: int
    metric: str
    value: float | None
    noise_std: float | None
    sent: int
    received: int
    dropped: tuple[Dropped, ...]
    bytes_down: int
    bytes_up: int
    wall_s: float

    def figures(self) -> dict[str, object]:
        """The look as one line of metrics.jsonl."""
        return {
            "look": self.look,
            "round": self.round,
            "metric": self.metric,
            "value": self.value,
            "noise_std": self.noise_std,
            "answers": self.received,
            "dropped": dict(Counter(drop.reason for drop in self.dropped)),
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
            "wall_s": self.wall_s,
        }


class Looks:
    """The looks of a run at its metric, every so many rounds.

    Args:
        plan: The metric's plan, which each client charges.
        every: Rounds from one look to the next.
        manifest: All tensors of the adapter.
        base_sha256: Hash of the base model that the adapter belongs to.
        lora: The adapter's settings.
        timeout_s: After which a look takes no more answers.
    """

    def __init__(
        self,
        *,
        plan: MetricPlan,
        every: int,
        manifest: AdapterManifest,
        base_sha256: str,
        lora: LoraConfig,
        timeout_s: float,
    ) -> None:
        self.plan = plan
        self.every = every
        self.manifest = manifest
        self.base_sha256 = base_sha256
        self.lora = lora
        self.timeout_s = timeout_s
        self.last: LookReport | None = None
        self._open: tuple[int, Asked] | None = None

    def after(self, round_number: int) -> LookReport | None:
        """The look that was taken after a round, if it was the last one."""
        return self.last if self.last and self.last.round == round_number else None

    def number(self, round_number: int) -> int | None:
        """Which look follows a round; None: none does."""
        look, rest = divmod(round_number, self.every)
        return look if not rest and 1 <= look <= self.plan.rounds else None

    def take(
        self,
        grid: Grid,
        round_number: int,
        adapter: Tensors,
        node_ids: Sequence[int] | None = None,
    ) -> LookReport | None:
        """Take the look that follows a round, if one does. Nothing that clients do fails the run.

        A look that is taken again brings the same values: who had answered resends the same bytes.

        Args:
            grid: Where the clients are.
            round_number: The round that is done.
            adapter: What it made.
            node_ids: Whom to ask; None: all nodes that the grid knows.
        """
        if self.number(round_number) is None:
            return None
        cohort = sorted(grid.get_node_ids()) if node_ids is None else node_ids
        messages = self.open(round_number, adapter, cohort)
        return self.close(
            grid.send_and_receive(messages, timeout=self.timeout_s) if messages else ()
        )

    def open(
        self, round_number: int, adapter: Tensors, node_ids: Iterable[int]
    ) -> Sequence[Message]:
        """Make the look's messages, one a node; none where no look follows the round.

        Raises:
            PlanError: A node is named twice: its answer would count twice.
        """
        look, cohort = self.number(round_number), list(node_ids)
        if len(set(cohort)) < len(cohort):
            raise PlanError(expected("node_ids", cohort[:8], "without repeats"))
        if look is None:
            return []
        check_tensors(adapter, self.manifest)
        task = MetricTask(
            run_id=self.plan.run_id,
            round=look,
            plan=self.plan.canonical(),
            base_sha256=self.base_sha256,
            lora=self.lora,
            manifest_sha256=self.manifest.sha256,
            tensors=adapters.changed_tensors(adapter, self.manifest, self.lora.init_seed),
        )
        content = app.to_records(encode_metric_task(task))
        asked = ask(
            content,
            cohort,
            message_type=MessageType.EVALUATE,
            ttl_s=self.timeout_s,
            number=round_number,
        )
        self._open = round_number, asked
        return asked.messages

    def close(self, replies: Iterable[Message]) -> LookReport:
        """Validate the answers and average them, each with the same weight.

        Raises:
            PlanError: No look is open.
        """
        if self._open is None:
            raise PlanError("expected an open look: call open first")
        (round_number, asked), self._open = self._open, None
        look, values = round_number // self.every, list[float]()
        asked.collect(replies, lambda content: values.append(self._valid(content, look)))
        # fsum rounds once, whatever the order of arrival.
        mean = math.fsum(values) / len(values) if values else None
        self.last = LookReport(
            look=look,
            round=round_number,
            metric=self.plan.metric,
            value=mean,
            noise_std=self.plan.noise_std / math.sqrt(len(values)) if values else None,
            sent=len(asked.messages),
            received=len(values),
            dropped=tuple(asked.dropped),
            bytes_down=asked.bytes_down,
            bytes_up=asked.bytes_up,
            wall_s=asked.wall_s,
        )
        log.info("round %d: %s %s of %d answers", round_number, self.plan.metric, mean, len(values))
        return self.last

    def _valid(self, content: Envelope, look: int) -> float:
        try:
            measurement = decode_measurement(content)
        except WireError as error:
            raise malformed(error) from error
        return validate_measurement(measurement, plan=self.plan, look=look)


def looks_of(
    experiment: ExperimentConfig,
    plan: MetricPlan | None,
    *,
    manifest: AdapterManifest,
    base_sha256: str,
) -> Looks | None:
    """The looks that an experiment's settings ask for; None where it buys none."""
    if plan is None:
        return None
    return Looks(
        plan=plan,
        every=experiment.metrics.every,
        manifest=manifest,
        base_sha256=base_sha256,
        lora=experiment.lora,
        timeout_s=experiment.federation.round_timeout_s,
    )
