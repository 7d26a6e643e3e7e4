"""A canary's score for whoever sees every release: how likely they are with it and without."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binom

from sordino.core.errors import AuditError, expected
from sordino.privacy.audit.checks import Floats, inside, whole


def likelihood_score(
    projections: ArrayLike, *, sampling_rate: float, noise_multiplier: float, steps: int = 1
) -> Floats:
    """Log-likelihood ratio of "in" against "out", by Neyman and Pearson the best score there is.

    A canary that is sampled is in few releases, and says much in each: a sum over the releases
    drowns it in the noise of all the others, where the ratio's terms stay near zero until one
    doesn't. Exact for canaries whose gradients have norm C, are orthogonal to each other and to the
    rest; for others a score like any other, whose lower bound holds all the same.

    Args:
        projections: Inner products of each release with each canary's gradient, divided by C² and
            by what the release's sum is divided by: 1 for a canary that is in once, plus noise.
            Shape ``(canaries, releases)``.
        sampling_rate: Chance that a canary is in a step.
        noise_multiplier: Of a step.
        steps: How many steps are summed up in a release.

    Returns:
        Shape ``(canaries,)``, higher for "in".

    Raises:
        AuditError: Another shape, a value that isn't finite, or a setting out of range.
    """
    seen = np.asarray(projections, dtype=np.float64)
    if seen.ndim != 2 or not seen.size or not np.isfinite(seen).all():
        raise AuditError(expected("projections", seen.shape, "finite, (canaries, releases)"))
    inside("sampling_rate", sampling_rate, 0.0, 1.0 + 1e-12)
    inside("noise_multiplier", noise_multiplier, 0.0, math.inf)
    whole("steps", steps, 1)
    times = np.arange(steps + 1)[:, np.newaxis]  # how often a canary is in one release
    chances = binom.logpmf(times, steps, sampling_rate)
    variance = steps * noise_multiplier**2
    score = np.zeros(len(seen))
    for release in seen.T:  # one by one: memory stays that of the canaries
        terms = chances + (times * release - times**2 / 2) / variance
        score += np.logaddexp.reduce(terms, axis=0)
    return score
