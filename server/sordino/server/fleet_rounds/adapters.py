"""The check of an adapter's updates: the very one that the strategy makes on any grid."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from sordino.core import adapters
from sordino.core.config import LoraConfig, TrainConfig
from sordino.core.contract import Artefact, SignedHead, decode_manifest, decode_update
from sordino.core.errors import UpdateRejectedError
from sordino.core.records import AdapterManifest
from sordino.privacy.ledger.keys import signature_holds
from sordino.privacy.plan import AnyPlan, decode_plan
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
    """The check of updates of all runs that train an adapter.

    Attributes:
        fleet: Holds the rounds, their plans and manifests.
    """

    fleet: Fleet

    def check(self, asked: Round, data: bytes) -> SignedHead | None:
        """See `Work.check`: form, run, round, plan, receipt, names, shapes, finite, norm."""
        update, head = decode_update(data, at_most=asked.max_answer_bytes)
        rules = self._rules(asked)
        aggregate.validate_update(
            update,
            round_number=asked.round,
            plan=rules.plan,
            trained=rules.trained,
            bound=rules.bound,
        )
        if head and not signature_holds(head.public_key, head.receipt.ledger_head, head.signature):
            raise UpdateRejectedError("wrong-receipt", "its signature doesn't hold")
        return head

    def _rules(self, asked: Round) -> Rules:
        with self.fleet.store.read() as rows:
            manifest = require(rows, Run, asked.run_id).manifest
        read = self.fleet.artefacts.read
        lora, train = read_settings(asked.settings)
        return rules_of(read(asked.plan), read(manifest), lora, train, asked.round)
