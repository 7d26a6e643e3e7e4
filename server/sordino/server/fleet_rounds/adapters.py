"""The work of a run that trains an adapter: the same checks and sums as on any other grid."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from sordino.core import adapters
from sordino.core.config import LoraConfig, TrainConfig
from sordino.core.contract import (
    Artefact,
    SignedHead,
    decode_adapter,
    decode_update,
    encode_adapter,
)
from sordino.core.errors import PlanError, UpdateRejectedError
from sordino.core.records import AdapterManifest, Tensors, Update
from sordino.privacy.ledger.keys import signature_holds
from sordino.privacy.plan import AnyPlan, CentralPlan, decode_plan
from sordino.server import aggregate
from sordino.server.release import Releases
from sordino.server.store import Round, Run


@dataclass(frozen=True, kw_only=True)
class AdapterWork:
    """Validation and aggregation of a run's updates.

    Attributes:
        read: Gives a plan's canonical bytes by their hash: `Artefacts.read`.
        manifest: All tensors of the adapter.
        lora: The adapter's settings.
        train: The local optimizer.
        releasing: Under central trust: the coordinator's ledger, noise and kept releases of a plan;
            the same folder for all plans of the run.
    """

    read: Callable[[str], bytes]
    manifest: AdapterManifest
    lora: LoraConfig
    train: TrainConfig
    releasing: Callable[[CentralPlan], Releases] | None = None

    def choose(self, run: Run, number: int, devices: Sequence[str], wanted: int) -> Sequence[str]:
        """See `Work.choose`: at random, or by the plan's secret coins."""
        plan = self._plan(run.plan)
        if isinstance(plan, CentralPlan):
            asked = self._releases(plan).ask(number, range(len(devices)))
            return [devices[index] for index in asked]
        return secrets.SystemRandom().sample(devices, min(wanted, len(devices)))

    def check(self, asked: Round, data: bytes) -> SignedHead | None:
        """See `Work.check`: form, run, round, plan, receipt, names, shapes, finite, norm."""
        update, head = decode_update(data, at_most=asked.max_answer_bytes)
        plan, trained = self._plan(asked.plan), self._trained(asked)
        aggregate.validate_update(
            update,
            round_number=asked.round,
            plan=plan,
            trained=trained,
            bound=self._bound(asked, plan, trained),
        )
        if head and not signature_holds(head.public_key, head.receipt.ledger_head, head.signature):
            raise UpdateRejectedError("wrong-receipt", "its signature doesn't hold")
        return head

    def aggregate(
        self, closed: Round, adapter: bytes | None, updates: Iterable[bytes]
    ) -> bytes | None:
        """See `Work.aggregate`: the uniform mean in fixed point, or the noised sum."""
        before = self._adapter(adapter)
        plan = self._plan(closed.plan)
        decoded = (self._decoded(closed, data) for data in updates)
        if isinstance(plan, CentralPlan):
            after = self._release(plan, closed, before, decoded)
        else:
            after = self._mean(plan, closed, before, decoded)
        if after is None:
            return None
        changed = adapters.changed_tensors(after, self.manifest, self.lora.init_seed)
        trained = {name: after[name] for name in self._trained(closed).names}
        return encode_adapter(changed or trained)

    def _mean(
        self, plan: AnyPlan, closed: Round, before: Tensors, updates: Iterable[Update]
    ) -> Tensors:
        trained = self._trained(closed)
        bound = self._bound(closed, plan, trained)
        total = aggregate.UpdateSum(trained, bound=bound, cohort=closed.asked)
        for update in updates:
            total.add(update.tensors)
        return aggregate.apply_mean(before, total.mean())

    def _release(
        self, plan: CentralPlan, closed: Round, before: Tensors, updates: Iterable[Update]
    ) -> Tensors | None:
        releases = self._releases(plan)
        settled = releases.settle(closed.round, before)
        if settled is not None:
            return settled.adapter if settled.state == "released" else None
        total = aggregate.PrivateSum(self._trained(closed), plan)
        for update in updates:
            total.add(update.tensors)
        return releases.release(closed.round, before, total)

    def _releases(self, plan: CentralPlan) -> Releases:
        if self.releasing is None:
            raise PlanError("expected releasing for a central plan: it holds the ledger and noise")
        return self.releasing(plan)

    def _decoded(self, closed: Round, data: bytes) -> Update:
        update, _ = decode_update(data, at_most=closed.max_answer_bytes)
        return update

    def _adapter(self, data: bytes | None) -> Tensors:
        initial = adapters.initial_adapter(self.manifest, self.lora.init_seed)
        return initial if data is None else {**initial, **decode_adapter(data, Artefact.of(data))}

    def _bound(self, asked: Round, plan: AnyPlan, trained: AdapterManifest) -> float:
        size = trained.parameter_count
        return aggregate.norm_bound(plan, self.train, size, round_number=asked.round)

    def _trained(self, asked: Round) -> AdapterManifest:
        return adapters.trained_manifest(self.manifest, self.lora.aggregation, asked.round)

    def _plan(self, sha256: str) -> AnyPlan:
        return decode_plan(self.read(sha256))
