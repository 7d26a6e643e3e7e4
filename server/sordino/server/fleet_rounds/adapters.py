"""The check of an adapter's updates: the very one that the strategy makes on any grid."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from sordino.core import adapters
from sordino.core.config import LoraConfig, TrainConfig
from sordino.core.contract import (
    Artefact,
    SignedHead,
    decode_manifest,
    decode_measurement,
    decode_update,
)
from sordino.core.errors import UpdateRejectedError
from sordino.core.records import AdapterManifest
from sordino.privacy.ledger.keys import signature_holds
from sordino.privacy.plan import AnyPlan, decode_metric_plan, decode_plan
from sordino.server import aggregate
from sordino.server.fleet_rounds.context import Fleet, require
from sordino.server.fleet_rounds.tasks import read_settings
from sordino.server.store import Round, Run


@dataclass(frozen=True)
class Rules:
    """What a round's updates are held against.

    Attributes:
        plan: What each had to charge.
        trained: The tensors that each has.
        bound: The largest norm of an honest one.
    """

    plan: AnyPlan
    trained: AdapterManifest
    bound: float


@lru_cache(maxsize=64)
def rules_of(
    plan: bytes, manifest: bytes, lora: LoraConfig, train: TrainConfig, round_number: int
) -> Rules:
    """The rules of a round: made once, for each of its updates asks."""
    decoded = decode_plan(plan)
    trained = adapters.trained_manifest(
        decode_manifest(manifest, Artefact.of(manifest)), lora.aggregation, round_number
    )
    bound = aggregate.norm_bound(decoded, train, trained.parameter_count, round_number=round_number)
    return Rules(decoded, trained, bound)


@dataclass(frozen=True)
class AdapterWork:
    """The check of what devices answer, to rounds of training and to paid looks, of all runs.

    Attributes:
        fleet: Holds the rounds, their plans and manifests.
    """

    fleet: Fleet

    def check(self, asked: Round, data: bytes) -> SignedHead | None:
        """See `Work.check`: form, run, round, plan, receipt, and what the answer may be."""
        lora, train = read_settings(asked.settings)
        plan = self.fleet.artefacts.read(asked.plan)
        head = (
            _check_measurement(asked, plan, data)
            if train is None
            else self._check_update(asked, plan, lora, train, data)
        )
        if head and not signature_holds(head.public_key, head.receipt.ledger_head, head.signature):
            raise UpdateRejectedError("wrong-receipt", "its signature doesn't hold")
        return head

    def _check_update(
        self, asked: Round, plan: bytes, lora: LoraConfig, train: TrainConfig, data: bytes
    ) -> SignedHead | None:
        update, head = decode_update(data, at_most=asked.max_answer_bytes)
        with self.fleet.store.read() as rows:
            manifest = require(rows, Run, asked.run_id).manifest
        rules = rules_of(plan, self.fleet.artefacts.read(manifest), lora, train, asked.round)
        aggregate.validate_update(
            update,
            round_number=asked.round,
            plan=rules.plan,
            trained=rules.trained,
            bound=rules.bound,
        )
        return head


def _check_measurement(asked: Round, plan: bytes, data: bytes) -> SignedHead:
    measurement, head = decode_measurement(data)
    aggregate.validate_measurement(measurement, plan=decode_metric_plan(plan), look=asked.round)
    return head
