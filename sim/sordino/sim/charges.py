"""What a run's ledgers charged: the events behind every ε of its report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sordino.client.charged import LEDGER
from sordino.privacy import accounting
from sordino.privacy.plan import AnyPlan, CentralPlan, NoPrivacyPlan, events_by_client
from sordino.server.release import COORDINATOR
from sordino.sim.folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class Charges:
    """The events of a run.

    Attributes:
        worst: What the run's guarantee is about. Clients hold disjoint records, so under local
            trust a record's loss is that of its own client: the one with most. Under central trust
            it is the coordinator's releases.
        spent: ε that each client's own ledger holds, by place; empty without privacy. Under central
            trust a device charges itself without amplification, which it can't verify.
        opacus_steps: The same as `worst` in Opacus' terms.
    """

    worst: tuple[accounting.Event, ...] = ()
    spent: tuple[float, ...] = ()
    opacus_steps: tuple[tuple[float, float, int], ...] = field(default=())


def charges_of(
    plan: AnyPlan,
    run: RunFolder,
    users: Sequence[str],
    states: Sequence[Path],
    seen: Sequence[Sequence[dict[str, Any]]],
) -> Charges:
    """Read a run's exported ledger, and under central trust the devices' own.

    Args:
        plan: The plan that was charged.
        run: The run's folder.
        users: The clients' names, as their ledgers have them.
        states: The clients' own folders.
        seen: What each client's device noted, a list of rounds a client.

    Raises:
        LedgerError: A ledger is defective.
        PlanError: An event is unknown.
    """
    if isinstance(plan, NoPrivacyPlan):
        return Charges()
    exported = events_by_client(run.ledger)
    if isinstance(plan, CentralPlan):
        worst = exported[COORDINATOR]
        own = {u: _of_device(state / LEDGER, u) for u, state in zip(users, states, strict=True)}
        steps: Sequence[Any] = [(plan.noise_multiplier, plan.sampling_rate, len(worst))]
    else:
        own = exported
        most = accounting.spent(own, plan.delta)
        name = max(most, key=lambda client: most[client])
        worst = own[name]
        noted = seen[users.index(name)]
        steps = [entry for one in noted for entry in one["opacus_steps"]]
    spent = accounting.spent(own, plan.delta)
    return Charges(
        worst=worst,
        spent=tuple(spent.get(user, 0.0) for user in users),  # who was never there spent nothing
        opacus_steps=tuple((sigma, rate, int(count)) for sigma, rate, count in steps),
    )


def _of_device(ledger: Path, user: str) -> tuple[accounting.Event, ...]:
    """What a device charged itself: nothing, if no round asked it."""
    return events_by_client(ledger)[user] if ledger.exists() else ()
