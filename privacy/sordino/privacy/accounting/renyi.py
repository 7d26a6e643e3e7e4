"""Rényi DP: the check beside the headline, and the filter that holds lifetime caps.

A coordinator chooses its next plan after it has seen what came out. PLD composes what was announced
in advance; a *filter* bounds what is chosen on the way (Rogers et al. 2016; for Rényi DP, Feldman
and Zrnic 2021, https://arxiv.org/abs/2008.11193, and Lécuyer 2021,
https://arxiv.org/abs/2103.01379).

**How δ is split over the orders.** For one fixed order α, stopping before the sum of the events'
Rényi divergences passes a budget B gives (α, B)-RDP, however the events were chosen, and so
(ε, δ')-DP with B + log(1 - 1/α) - log(δ'α)/(α - 1) <= ε (Balle et al. 2020, Canonne et al. 2020).
The filter has orders α1 .. αn, fixed when the policy is signed, gives each δ' = δ/n, and lets an
event pass while at least one order is within ε. Which order that is may depend on what came out, so
it must be paid for: sort each possible transcript by the first order that it never passed. On those
of order αi, the process is the one that stops at αi's own budget, which is (ε, δ/n)-DP; the n parts
add up to δ. The cost is log(n)/(α - 1) in ε: a short list of orders is better than a long one.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import dp_accounting
import numpy as np
from dp_accounting.rdp import RdpAccountant
from numpy.typing import NDArray
from scipy.special import gammaln, logsumexp

from sordino.core.errors import PlanError, PolicyRefusedError, expected
from sordino.core.stats import round_up
from sordino.privacy.accounting.events import Event, Gaussians, Unit, gaussians, number
from sordino.privacy.accounting.losses import DECIMALS, merge

DEFAULT_ORDERS = (3, 4, 6, 10, 20, 40)
"""Whole orders, so that every divergence is an exact finite sum; for caps of ε from 0.5 to 20."""

MOST_ORDERS, LARGEST_ORDER = 64, 4096
_ERROR = 1e-9  # relative; far above what the sums in float64 lose


def epsilon_rdp(
    events: Iterable[Event], delta: float, orders: Sequence[float] | None = None
) -> float:
    """Upper bound on ε by Rényi DP: looser than PLD, an independent check, rounded up.

    Args:
        events: All of one unit.
        delta: The δ of the figure.
        orders: Which orders to try; None: dp-accounting's own. It leaves out a fractional order at
            which its series doesn't converge, so a comparison with another accountant wants whole
            ones.

    Raises:
        PlanError: δ is not in (0, 1), or the events are of both units.
    """
    merged = merge(events, delta)
    if not merged:
        return 0.0
    rdp = RdpAccountant() if orders is None else RdpAccountant(orders=list(orders))
    with _quiet():
        for event in merged:
            step = dp_accounting.PoissonSampledDpEvent(
                event.sampling_rate, dp_accounting.GaussianDpEvent(event.noise_multiplier)
            )
            rdp.compose(step, event.steps)
    return round_up(float(rdp.get_epsilon(delta)), DECIMALS)


def divergences(cost: Gaussians, orders: Sequence[int]) -> NDArray[np.float64]:
    """Rényi divergence of each whole order, in the worse direction, rounded up.

    Sampled: the exact sum of Mironov, Talwar, Zhang 2019 (https://arxiv.org/abs/1908.10530),
    section 3.3, which also shows that adding a record is the worse direction.
    """
    alpha = np.asarray(orders, dtype=np.float64)
    sigma, rate = cost.noise_multiplier, cost.sampling_rate
    if rate == 1:
        each = alpha / (2 * sigma**2)
    else:
        each = np.array([_sampled(order, rate, sigma) for order in orders])
    return np.asarray(cost.steps * each * (1 + _ERROR) + _ERROR * 1e-6)


def _sampled(order: int, rate: float, sigma: float) -> float:
    k = np.arange(order + 1, dtype=np.float64)
    binomial = gammaln(order + 1) - gammaln(k + 1) - gammaln(order - k + 1)
    chance = k * math.log(rate) + (order - k) * math.log1p(-rate)
    return max(float(logsumexp(binomial + chance + k * (k - 1) / (2 * sigma**2))), 0.0) / (
        order - 1
    )


@dataclass(frozen=True, kw_only=True)
class Filter:
    """A lifetime cap on one unit's loss, under events that are chosen on the way.

    A pure object: it holds no state, and whoever keeps the events keeps the budget.

    Attributes:
        unit: Whose loss.
        epsilon: The cap.
        delta: Its δ, shared equally by the orders.
        orders: Rényi orders: whole numbers >= 2, fixed when the policy is signed.
        records_per_user: The most records that a user owns; without it, no event of the unit
            record passes a cap on users.
    """

    unit: Unit
    epsilon: float
    delta: float
    orders: tuple[int, ...] = DEFAULT_ORDERS
    records_per_user: int | None = None

    def __post_init__(self) -> None:
        number("epsilon", self.epsilon, lambda v: v > 0, "finite and > 0")
        number("delta", self.delta, lambda v: 0 < v < 1, "in (0, 1)")
        check_orders(self.orders)

    def spent(self, events: Iterable[Event]) -> float:
        """The ε that the events have used of the cap: the least over the orders, rounded up."""
        total = np.zeros(len(self.orders))
        costs: dict[Gaussians, int] = {}
        for event in events:
            cost = gaussians(event, self.unit, self.records_per_user)
            if cost is None:
                return math.inf
            costs[cost] = costs.get(cost, 0) + 1
        if not costs:
            return 0.0
        for cost, count in costs.items():
            total += count * divergences(cost, self.orders)
        share = self.delta / len(self.orders)
        alpha = np.asarray(self.orders, dtype=np.float64)
        each = total + np.log1p(-1 / alpha) - np.log(share * alpha) / (alpha - 1)
        return round_up(max(float(each.min()), 0.0), DECIMALS)

    def would_allow(self, events_so_far: Iterable[Event], new_event: Event) -> None:
        """Let an event pass, or refuse it.

        Raises:
            PolicyRefusedError: With reason `policy-budget`: the cap would be passed.
        """
        if self.spent((*events_so_far, new_event)) > self.epsilon:
            raise PolicyRefusedError(
                "policy-budget",
                f"the lifetime cap of epsilon {self.epsilon} at delta {self.delta}, unit "
                f"{self.unit}, would be passed",
            )

    def rounds_left(self, events_so_far: Iterable[Event], round_event: Event, most: int) -> int:
        """How many more times `round_event` would pass, looking no further than `most`."""
        so_far = tuple(events_so_far)
        low, high = 0, most + 1  # `low` pass, `high` don't, or aren't asked about
        while high - low > 1:
            middle = (low + high) // 2
            ahead = self.spent((*so_far, *(round_event,) * middle))
            low, high = (middle, high) if ahead <= self.epsilon else (low, middle)
        return low


def check_orders(orders: Sequence[int]) -> None:
    """Refuse orders that no filter can have."""
    whole = all(type(order) is int and 2 <= order <= LARGEST_ORDER for order in orders)
    if not (whole and 0 < len(orders) <= MOST_ORDERS and list(orders) == sorted(set(orders))):
        required = f"1 to {MOST_ORDERS} rising whole numbers in 2..{LARGEST_ORDER}"
        raise PlanError(expected("orders", orders, required))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep dp-accounting from announcing each RDP order it leaves out: fewer is still sound."""

    def keep(record: logging.LogRecord) -> bool:
        return "failed to converge" not in record.getMessage()

    logger = logging.getLogger("absl")
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)
