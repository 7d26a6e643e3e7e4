"""Rényi divergences of sampled Gaussians at given orders, each rounded up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, logsumexp

from sordino.core.errors import PlanError, expected
from sordino.privacy.accounting.events import Gaussians

MOST_ORDERS, SMALLEST_ORDER, LARGEST_ORDER = 64, 1.1, 4096.0
_RELATIVE, _ABSOLUTE = 1e-9, 1e-12  # of one step; far above what the sums in float64 lose
_LEAST_SIGMA = 0.2  # below, a fractional order takes the bound without sampling
_LOST = 40.0  # a quadrature's truncation and discretization are each below e^-40


def divergences(cost: Gaussians, orders: Sequence[float]) -> NDArray[np.float64]:
    """Rényi divergence of each order, in the worse direction, rounded up.

    Adding a record is the worse direction at every order (Mironov, Talwar, Zhang 2019,
    https://arxiv.org/abs/1908.10530, theorem 5).

    Args:
        cost: What composes, `steps` times.
        orders: Each in [1.1, 4096].
    """
    sigma, rate = cost.noise_multiplier, cost.sampling_rate
    each = np.array([_divergence(float(order), rate, sigma) for order in orders])
    return np.asarray(cost.steps * (each * (1 + _RELATIVE) + _ABSOLUTE))


def check_orders(orders: Sequence[float]) -> None:
    """Refuse orders that no filter can have.

    Raises:
        PlanError: Saying which are possible.
    """
    numbers = all(type(order) in (int, float) for order in orders)
    inside = numbers and all(SMALLEST_ORDER <= order <= LARGEST_ORDER for order in orders)
    if not (inside and 0 < len(orders) <= MOST_ORDERS and list(orders) == sorted(set(orders))):
        required = f"1 to {MOST_ORDERS} rising numbers in {SMALLEST_ORDER}..{LARGEST_ORDER:g}"
        raise PlanError(expected("orders", orders, required))


@lru_cache(maxsize=4096)
def _divergence(order: float, rate: float, sigma: float) -> float:
    unsampled = order / 2 / sigma / sigma
    if rate == 1:
        return unsampled
    if order.is_integer():
        return _whole(int(order), rate, sigma)
    # Sampling only ever lowers it: the bound without is sound where the quadrature grows long.
    return _fractional(order, rate, sigma) if sigma >= _LEAST_SIGMA else unsampled


def _whole(order: int, rate: float, sigma: float) -> float:
    """The exact finite sum of Mironov, Talwar, Zhang 2019, section 3.3."""
    k = np.arange(order + 1, dtype=np.float64)
    binomial = gammaln(order + 1) - gammaln(k + 1) - gammaln(order - k + 1)
    chance = k * math.log(rate) + (order - k) * math.log1p(-rate)
    total = float(logsumexp(binomial + chance + k * (k - 1) / (2 * sigma**2)))
    return max(total, 0.0) / (order - 1)


_STRIP: Final = 3.0  # < π: how far from the real line, in σ·min(σ, 1), the integrand is analytic


def _fractional(order: float, rate: float, sigma: float) -> float:
    """Log E (1 - q + q·e^((2x-1)/2σ²))^α / (α - 1), x ~ N(0, σ²), by the trapezoidal rule.

    *Step.* The integrand is analytic where |Im x| < πσ²; on Im x = tσ its modulus is at most
    e^(t²/2) times its value on the real line. So a step of cσ is off by a factor of at most
    2e^(t²/2)/(e^(2πt/c) - 1) (Trefethen and Weideman 2014, theorem 5.1): below e^-40 for
    t = 3·min(σ, 1) and c = t/7.5. *Ends.* The integrand is at most 2^(α-1) times the sum of its two
    extremes, Gaussians around 0 and α whose integrals are no larger than the whole; beyond
    √(2·(40 + α)) standard deviations of either lies less than e^-40 of it.
    """
    reach = math.sqrt(2 * (_LOST + order)) * sigma
    step = sigma * _STRIP * min(sigma, 1.0) / 7.5
    x = -reach + step * np.arange(math.ceil((order + 2 * reach) / step) + 1)
    ratio = np.logaddexp(math.log1p(-rate), math.log(rate) + (2 * x - 1) / (2 * sigma**2))
    density = -(x**2) / (2 * sigma**2) + math.log(step / sigma / math.sqrt(2 * math.pi))
    return max(float(logsumexp(order * ratio + density)), 0.0) / (order - 1)
