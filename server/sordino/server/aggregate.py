"""Aggregation, in numpy alone: what an update may be, and a sum in which order changes nothing.

Every update weighs the same: what a client says of its own size never counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sordino.core.config import TrainConfig
from sordino.core.errors import PlanError, UpdateRejectedError, expected
from sordino.core.records import AdapterManifest, Measurement, Tensors, Update, check_tensors
from sordino.core.schedule import learning_rates
from sordino.privacy.ledger import Charge
from sordino.privacy.noise import NoiseSource
from sordino.privacy.plan import (
    AnyPlan,
    CentralPlan,
    CentralSum,
    MetricPlan,
    NoPrivacyPlan,
    Plan,
)

HONEST_REJECTION = 1e-9
"""An honest update is beyond `norm_bound` with at most this probability."""

RECORDS_ALLOWANCE = 8.0
"""A client may hold this many times the records that the plan's public divisor speaks of."""

UNCLIPPED_NORM = 100.0
"""Without privacy nothing clips a record's gradient; a norm above this is taken for a fault."""

ADAM_BETAS = (0.9, 0.999)
"""torch's defaults, which the local Adam uses."""

_ROUNDING = 1.001  # the client trains in float32

# --- what an update may be ---------------------------------------------------------------------


def validate_update(
    update: Update,
    *,
    round_number: int,
    plan: AnyPlan,
    trained: AdapterManifest,
    bound: float,
) -> None:
    """Refuse an update that differs in anything from what the round allows.

    Args:
        update: As the wire gave it.
        round_number: The round, from 1.
        plan: The run's plan, which the client had to charge.
        trained: The tensors that train in this round.
        bound: The largest Euclidean norm of an honest update, from `norm_bound`.

    Raises:
        UpdateRejectedError: With reason ``wrong-run``, ``wrong-round``, ``wrong-plan``,
            ``no-receipt``, ``missing-tensor``, ``extra-tensor``, ``wrong-shape``, ``wrong-dtype``,
            ``not-finite`` or ``over-norm``.
    """
    for word, got, wanted in (
        ("run", update.run_id, plan.run_id),
        ("round", update.round, round_number),
        ("plan", update.plan_sha256, _sha256(plan)),
    ):
        if got != wanted:
            raise UpdateRejectedError(f"wrong-{word}", expected(word, got, f"= {wanted!r}"))
    if not isinstance(plan, NoPrivacyPlan) and update.receipt is None:
        raise UpdateRejectedError("no-receipt", "the client doesn't say where it charged the round")
    check_tensors(update.tensors, trained)
    norm = update_norm(update.tensors)
    if norm > bound:
        raise UpdateRejectedError("over-norm", expected("norm", norm, f"<= {bound:.6g}"))


@lru_cache(maxsize=16)
def _sha256(plan: AnyPlan) -> str:
    return plan.sha256  # made anew at each call, and each update asks


def update_norm(tensors: Mapping[str, NDArray[np.float32]]) -> float:
    """Euclidean norm over all tensors, in float64."""
    squares = 0.0
    for name in sorted(tensors):
        flat = tensors[name].astype(np.float64).ravel()
        squares += float(flat @ flat)
    return math.sqrt(squares)


def norm_bound(
    plan: AnyPlan, train: TrainConfig, parameter_count: int, *, round_number: int
) -> float:
    r"""The norm that an honest update stays below, but for a chance of `HONEST_REJECTION`.

    A local round is T steps; step s sees the noised gradient g_s = (S_s + z_s)/D: a sum S_s of
    clipped records of norm at most C each, noise z_s ~ N(0, σ²C²I) in d dimensions, and the plan's
    public divisor D. Its rate η_s is the schedule's (`learning_rates`). An update is mostly noise:
    its norm is about σC√d·η/D, far above C. C here is the plan's sensitivity on the grid; z_s is
    rounded to that grid, which adds at most γ√d/2.

    **SGD** with momentum β (no dampening, no Nesterov, fresh in each round) is linear in the
    gradients: the update is -Σ_s w_s·g_s with w_s = η_s + β·η_(s+1) + … + β^(T-s)·η_T. So

    - the records add at most 1/D · C·Σ w_s·n_s, where batch n_s is a binomial(N, q). N is private;
      public is the allowance N ≤ `RECORDS_ALLOWANCE`·D/q, a mean of μ = `RECORDS_ALLOWANCE`·D.
      With w the largest w_s, by Bernstein Σ w_s·n_s exceeds μΣ w_s + wL/3 + √(w²L²/9 + 2μLΣ w_s²)
      with probability at most e^-L; L = ln(2/p) spends half of p.
    - the noise adds exactly N(0, σ²C²/D²·Σ w_s²·I), whatever the data: the z_s are independent.
      The norm is 1-Lipschitz in a standard Gaussian and its mean is at most √d, so it exceeds
      √d + t with probability at most e^(-t²/2); t = √(2·ln(2/p)) spends the other half.

    The bound is the sum of the two. A client beyond the allowance is refused only if its records'
    gradients also align almost perfectly, through the whole round.

    **Adam** needs no chance: by Cauchy-Schwarz |m̂_t|/√v̂_t is at most
    (1-β₁)/(1-β₁^t) · √((1-β₂^t)/(1-β₂) · Σ_{j<t} (β₁²/β₂)^j) in each coordinate, whatever the
    gradients were, so the norm is at most √d times the sum of that over the steps, each times η_t.

    **Central trust** needs none of this: a client clips its whole update, so C is the bound.

    **Without privacy** there is no clip and no noise. Adam's bound holds as it is; for SGD the
    clip norm is replaced by `UNCLIPPED_NORM`, a limit of sanity and not of any guarantee.

    Args:
        plan: The run's plan; it decides C, σ, D and T.
        train: The local optimizer.
        parameter_count: d, the number of parameters that train in this round.
        round_number: Which round of the plan it is, from 1.

    Raises:
        PlanError: `parameter_count` isn't positive, or the bound isn't finite.
    """
    if parameter_count < 1:
        raise PlanError(expected("parameter_count", parameter_count, ">= 1"))
    rates = learning_rates(
        train, round_number=round_number, rounds=plan.rounds, steps=plan.steps_per_round
    )
    if isinstance(plan, CentralPlan):
        bound = plan.clip_norm
    elif train.optimizer == "adam":
        bound = _adam_bound(rates) * math.sqrt(parameter_count)
    else:
        bound = _sgd_bound(plan, _momentum_weights(train.momentum, rates), parameter_count)
    if not 0 < bound * _ROUNDING < math.inf:
        raise PlanError(expected("norm bound", bound, "finite and > 0", "lower the learning rate"))
    return bound * _ROUNDING


def _sgd_bound(plan: Plan | NoPrivacyPlan, weights: Sequence[float], parameter_count: int) -> float:
    clip, noise, rounded = UNCLIPPED_NORM, 0.0, 0.0
    if isinstance(plan, Plan):
        clip, noise = plan.sensitivity(parameter_count), plan.noise_std(parameter_count)
        rounded = plan.grid_step(parameter_count) * math.sqrt(parameter_count) / 2
    total, squares = sum(weights), sum(w * w for w in weights)
    mean = RECORDS_ALLOWANCE * plan.divisor
    tail = math.log(2 / HONEST_REJECTION)
    largest = max(weights) * tail / 3
    records = mean * total + largest + math.sqrt(largest**2 + 2 * mean * tail * squares)
    radius = math.sqrt(parameter_count) + math.sqrt(2 * tail)
    noises = noise * math.sqrt(squares) * radius
    return (clip * records + noises + rounded * total) / plan.divisor


def _momentum_weights(momentum: float, rates: Sequence[float]) -> list[float]:
    """How far each step's gradient is applied: its own rate, and what momentum adds later."""
    weights: list[float] = []
    carried = 0.0
    for rate in reversed(rates):
        carried = rate + momentum * carried
        weights.append(carried)
    return weights[::-1]


def _adam_bound(rates: Sequence[float]) -> float:
    """How far Adam can move one coordinate."""
    beta1, beta2 = ADAM_BETAS
    total = 0.0
    series = 0.0
    for step, rate in enumerate(rates, 1):
        series = series * beta1 * beta1 / beta2 + 1.0
        scale = (1 - beta2**step) / (1 - beta2) * series
        total += rate * (1 - beta1) / (1 - beta1**step) * math.sqrt(scale)
    return total


# --- what an answer to a paid look may be --------------------------------------------------------


def validate_measurement(measurement: Measurement, *, plan: MetricPlan, look: int) -> float:
    """Refuse an answer that differs in anything from what the look allows; else its value.

    Raises:
        UpdateRejectedError: With reason ``wrong-run``, ``wrong-round``, ``wrong-plan`` or
            ``out-of-range``.
    """
    for word, got, wanted in (
        ("run", measurement.run_id, plan.run_id),
        ("round", measurement.round, look),
        ("plan", measurement.plan_sha256, plan.sha256),
    ):
        if got != wanted:
            raise UpdateRejectedError(f"wrong-{word}", expected(word, got, f"= {wanted!r}"))
    bound = value_bound(plan)
    if not abs(measurement.value - plan.centre) <= bound:
        required = f"within {bound:.6g} of {plan.centre:g}"
        raise UpdateRejectedError("out-of-range", expected("value", measurement.value, required))
    return measurement.value


def value_bound(plan: MetricPlan) -> float:
    """How far an honest answer stays from the centre, but for a chance of `HONEST_REJECTION`.

    At most `RECORDS_ALLOWANCE` times the records that the public divisor speaks of, each at the end
    of the range, and a Gaussian's tail of two sides: P(|Z| > t) <= 2·exp(-t²/2).
    """
    tail = math.sqrt(2 * math.log(2 / HONEST_REJECTION))
    return RECORDS_ALLOWANCE * plan.clip_norm + plan.noise_std * (tail + 1)


# --- the sum -----------------------------------------------------------------------------------


class UpdateSum:
    """A streaming sum in fixed-point int64: the order of arrival doesn't change a bit.

    Integer addition is associative, float addition isn't. The scale 2^k is fixed before the first
    update arrives, from public figures: `cohort` updates of norm at most `bound` have no
    coordinate above `bound`, so with cohort · (bound·2^k + 1) < 2^63 no partial sum overflows, in
    any order. A float32 times a power of two is exact in float64, so each update is rounded once,
    by at most 2^-(k+1): about cohort · bound / 2^62. Memory is one int64 a parameter, however many
    clients there are.

    Args:
        trained: The tensors that each update has.
        bound: The largest norm of an update, from `norm_bound`.
        cohort: The most updates that will be added.
    """

    def __init__(self, trained: AdapterManifest, *, bound: float, cohort: int) -> None:
        if cohort < 1:
            raise PlanError(expected("cohort", cohort, ">= 1"))
        if not 0 < bound < math.inf:
            raise PlanError(expected("norm bound", bound, "finite and > 0"))
        self._exponent = 62 - math.frexp(bound)[1] - cohort.bit_length()
        if not cohort * (math.ldexp(bound, self._exponent) + 1.0) < 2.0**63:
            raise PlanError(expected("cohort", cohort, "small enough for a sum of 64 bits"))
        self.trained = trained
        self._bound = bound
        self._cohort = cohort
        self._sums = {spec.name: np.zeros(spec.shape, np.int64) for spec in trained.tensors}
        self.count = 0

    def add(self, tensors: Mapping[str, NDArray[np.float32]]) -> None:
        """Add one update, all of it or nothing.

        Raises:
            UpdateRejectedError: It differs from the manifest, or a coordinate is beyond the bound.
            PlanError: The cohort is already complete.
        """
        if self.count >= self._cohort:
            raise PlanError(expected("updates", self.count + 1, f"<= the cohort of {self._cohort}"))
        check_tensors(tensors, self.trained)
        for name in self._sums:
            if float(np.abs(tensors[name]).max()) > self._bound:
                raise UpdateRejectedError("over-norm", f"a value of {name} is beyond the bound")
        for name in self._sums:
            scaled = np.ldexp(tensors[name].astype(np.float64), self._exponent)
            self._sums[name] += np.rint(scaled).astype(np.int64)
        self.count += 1

    def mean(self) -> dict[str, NDArray[np.float64]]:
        """The uniform mean of what was added.

        Raises:
            PlanError: Nothing was added.
        """
        if self.count == 0:
            raise PlanError("expected at least one update, got none")
        return {
            name: np.ldexp(total.astype(np.float64), -self._exponent) / self.count
            for name, total in self._sums.items()
        }


class PrivateSum:
    """A round's sum under central trust, by tensor: added to by anybody, read only with a charge.

    Args:
        trained: The tensors that each update has.
        plan: The run's plan, which decides clip, grid, noise and divisor.
    """

    def __init__(self, trained: AdapterManifest, plan: CentralPlan) -> None:
        self.trained = trained
        self._sum = CentralSum(plan, trained.parameter_count)

    @property
    def count(self) -> int:
        """How many users answered; the noise doesn't cover it."""
        return self._sum.count

    def add(self, tensors: Mapping[str, NDArray[np.float32]]) -> None:
        """Add one user's update, all of it or nothing.

        Raises:
            UpdateRejectedError: It differs from the manifest.
        """
        check_tensors(tensors, self.trained)
        self._sum.add(np.concatenate([tensors[name].ravel() for name in self.trained.names]))

    def release(self, charge: Charge, source: NoiseSource) -> dict[str, NDArray[np.float64]]:
        """The noised sum over the planned cohort, once; see `CentralSum.release`.

        Raises:
            PlanError: Not a fresh charge of this plan's release.
        """
        values = self._sum.release(charge, source)
        ends = np.cumsum([spec.size for spec in self.trained.tensors])[:-1]
        parts = np.split(values, ends)
        return {
            spec.name: part.reshape(spec.shape)
            for spec, part in zip(self.trained.tensors, parts, strict=True)
        }


def apply_mean(adapter: Tensors, mean: Mapping[str, NDArray[np.float64]]) -> Tensors:
    """The new global adapter: old + mean where it trained, the very same tensor elsewhere."""
    changed = {
        name: (adapter[name].astype(np.float64) + change).astype(np.float32)
        for name, change in mean.items()
    }
    return {**adapter, **changed}
