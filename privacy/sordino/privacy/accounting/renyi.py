"""Rényi DP: the check beside the headline, and the filter that holds lifetime caps.

A coordinator chooses its next plan after it has seen what came out. PLD composes what was announced
in advance; a *filter* bounds what is chosen on the way (Rogers et al. 2016; for Rényi DP, Feldman
and Zrnic 2021, https://arxiv.org/abs/2008.11193, and Lécuyer 2021,
https://arxiv.org/abs/2103.01379).

**How δ is split over the orders.** The filter has orders α1 .. αn with weights w1 .. wn that add up
to 1, all fixed when the policy is signed. Let Z be the privacy loss of all that came out so far,
for one pair of neighbours in one direction, and Bi the sum of the events' Rényi divergences at
order αi. Each event is chosen from what came before it, and its divergences are known before it is
drawn; so for every i, e^((αi-1)(Z-Bi)) is a supermartingale that starts at 1, and so is the mixture

    M = Σ wi·e^((αi-1)(Z-Bi))

(the method of mixtures, Robbins 1970; Whitehouse et al. 2023, https://arxiv.org/abs/2203.05481, use
it for odometers). An event passes if afterwards δ·M >= 1 - e^(ε-Z) *for every value that Z could
have*: a condition on the Bi alone. Where the events end, at a time that may depend on all that came
out, δ's hockey stick is E[max(0, 1 - e^(ε-Z))] <= δ·E[M] <= δ: the filter is (ε, δ)-DP.

For one order this is Canonne et al. 2020's conversion. For several it is never worse than giving
each order δ·wi and letting the best one count, which bounds every summand of M by itself; near the
loss that matters, orders next to each other share the work, so that a fine grid costs little.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from sordino.core.errors import PolicyRefusedError
from sordino.core.stats import round_up
from sordino.privacy.accounting.divergences import check_orders, divergences
from sordino.privacy.accounting.events import Event, Gaussians, Unit, gaussians, number
from sordino.privacy.accounting.losses import DECIMALS, merge

DEFAULT_ORDERS = (1.8, 2.2, 2.8, 3.6, 4.9, 6.7, 9.5, 13.5, 19.5, 28.0, 42.0, 61.0)
"""For caps of ε from 0.5 to 20. A policy that names no orders was signed for these: they never
change, as the weights don't."""


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
    # A device that only keeps to its cap does without: 50 MB of its memory.
    import dp_accounting  # noqa: PLC0415
    from dp_accounting.rdp import RdpAccountant  # noqa: PLC0415

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


@dataclass(frozen=True, kw_only=True)
class Filter:
    """A lifetime cap on one unit's loss, under events that are chosen on the way.

    A pure object: it holds no state, and whoever keeps the events keeps the budget.

    Attributes:
        unit: Whose loss.
        epsilon: The cap.
        delta: Its δ, shared by the orders in proportion to 1/√(α - 1): a small share costs a large
            order little.
        orders: Rényi orders: rising numbers in [1.1, 4096], fixed when the policy is signed.
        records_per_user: The most records that a user owns; without it, no event of the unit
            record passes a cap on users.
    """

    unit: Unit
    epsilon: float
    delta: float
    orders: tuple[float, ...] = DEFAULT_ORDERS
    records_per_user: int | None = None

    def __post_init__(self) -> None:
        number("epsilon", self.epsilon, lambda v: v > 0, "finite and > 0")
        number("delta", self.delta, lambda v: 0 < v < 1, "in (0, 1)")
        check_orders(self.orders)

    def spent(self, events: Iterable[Event]) -> float:
        """The smallest ε at which the events would have passed, rounded up."""
        return self._epsilon(self._divergences(events))

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
        so_far, each = self._divergences(events_so_far), self._divergences([round_event])
        low, high = 0, most + 1  # `low` pass, `high` don't, or aren't asked about
        while high - low > 1:
            middle = (low + high) // 2
            passes = self._epsilon(so_far + middle * each) <= self.epsilon
            low, high = (middle, high) if passes else (low, middle)
        return low

    def _divergences(self, events: Iterable[Event]) -> NDArray[np.float64]:
        """The events' Rényi divergences together, one an order; infinite where not bounded."""
        total = np.zeros(len(self.orders))
        costs: Counter[Gaussians | None] = Counter(
            gaussians(event, self.unit, self.records_per_user) for event in events
        )
        for cost, count in costs.items():
            total += math.inf if cost is None else count * divergences(cost, self.orders)
        return total

    def _epsilon(self, spent: NDArray[np.float64]) -> float:
        """The largest z + log(1 - δ·M(z)): at that ε, the condition holds at every loss z.

        That is concave in z, with its top where Σ δ·wi·αi·e^((αi-1)(z-Bi)) is 1.
        """
        if not spent.any():
            return 0.0
        orders = np.asarray(self.orders, dtype=np.float64)
        slope, weight = orders - 1, (orders - 1) ** -0.5
        share = np.log(self.delta * weight / weight.sum()) - slope * spent
        ends = -(share + np.log(orders)) / slope  # where each summand by itself is 1
        low, high = float((ends - math.log(len(orders)) / slope).min()), float(ends.min())
        if not math.isfinite(high):
            return math.inf
        for _ in range(60):
            middle = (low + high) / 2
            below = logsumexp(share + np.log(orders) + slope * middle) <= 0
            low, high = (middle, high) if below else (low, middle)
        # `high` and `low` enclose the top, so this is no smaller than it.
        found = high + math.log1p(-math.exp(logsumexp(share + slope * low)))
        return round_up(max(found, 0.0), DECIMALS)


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
