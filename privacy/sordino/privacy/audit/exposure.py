"""How well a planted secret is known: its rank among all that could have stood in its place.

Carlini et al. 2019, https://arxiv.org/abs/1802.08232, section 4: exposure is log2 of how many
candidates there are less log2 of the secret's rank. A model that never saw it gives each rank the
same chance, so exposure is at least x with probability about 2^-x, and 1.443 bits on average.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import gammaincc

from sordino.core.errors import AuditError, expected
from sordino.core.stats import Interval
from sordino.privacy.audit.checks import LEVEL, column, inside, same_length, whole
from sordino.privacy.audit.intervals import CONFIDENCE, clopper_pearson

_POINTWISE = 1 / math.log(2)  # the mean under the null, in bits


def rank_of(secret: float, candidates: ArrayLike) -> float:
    """1 plus the candidates that score higher, those that score the same counting half.

    Args:
        secret: The planted secret's score, higher the likelier.
        candidates: The scores of all others that could have stood in its place.
    """
    others = column("candidates", candidates)
    inside("secret", secret, -math.inf, math.inf)
    return 1 + float((others > secret).sum()) + float((others == secret).sum()) / 2


def exposure(rank: float, space: int) -> float:
    """Exposure in bits of an exact rank among `space` candidates, the secret among them.

    >>> exposure(1, 1024)
    10.0
    """
    whole("space", space, 2)
    inside("rank", rank, 1.0, float(space), closed=True)
    return math.log2(space) - math.log2(rank)


def sampled_exposure(secret: float, candidates: ArrayLike, level: float = CONFIDENCE) -> Interval:
    """Exposure where only some candidates were scored, drawn at random from all others.

    The share that scores at least as high is bounded by Clopper and Pearson; minus log2 of it is
    the exposure. No distribution is fitted to go beyond: a sample of n can't show more than about
    log2 n bits (Carlini et al. fit a skewed normal, whose far tail nothing here would test).
    """
    others = column("candidates", candidates)
    inside("secret", secret, -math.inf, math.inf)
    above = int((others >= secret).sum())
    share = clopper_pearson(above, others.size, level)
    bits = [-math.log2(value) if value > 0 else math.inf for value in (share.high, share.low)]
    return Interval(
        estimate=-math.log2((above + 1) / (others.size + 1)),
        low=max(0.0, bits[0]),
        high=bits[1],
        method=f"rank in a sample of {others.size}, Clopper-Pearson",
        level=level,
        resamples=0,
    )


def exposure_p_value(exposures: ArrayLike) -> float:
    """How likely exposures this large together are, if no secret was learnt.

    ln 2 times an exposure is then at most exponential, one for each secret, so the sum is at most
    Gamma. Secrets must be of independent random choice.

    >>> round(exposure_p_value([1.443] * 20), 2)
    0.47
    """
    bits = column("exposures", exposures)
    return float(gammaincc(bits.size, max(0.0, float(bits.sum()) * math.log(2))))


@dataclass(frozen=True, kw_only=True)
class Exposure:
    """Planted secrets' ranks, by how often each was repeated.

    Attributes:
        adversary: Who could rank them.
        ranks: One a secret, among `space` candidates: see `rank_of`. Of a sample, the rank in it.
        repetitions: How often each stood in the training data; 0: never, the null.
        space: How many candidates were ranked, the secret among them.
        exact: Whether these are all there are; else they are a random sample of them.
        level: The chance of a false alarm of all repetitions together.
    """

    kind: ClassVar[str] = "exposure"

    adversary: str
    ranks: tuple[float, ...]
    repetitions: tuple[int, ...]
    space: int
    exact: bool
    level: float = LEVEL

    def __post_init__(self) -> None:
        same_length(ranks=self.ranks, repetitions=self.repetitions)
        whole("space", self.space, 2)
        inside("level", self.level, 0.0, 1.0)
        for rank in self.ranks:
            inside("rank", rank, 1.0, float(self.space), closed=True)
        for times in self.repetitions:
            whole("repetitions", times, 0)
        if not self.ranks:
            raise AuditError(expected("ranks", (), "one a secret, at least one"))

    def figures(self) -> dict[str, Any]:
        """Mean exposure by repetitions, each held against the null.

        What was never planted must look like the null: if it doesn't, ranks say something else than
        what was learnt, such as that the secrets weren't drawn at random.
        """
        bits = np.array([exposure(rank, self.space) for rank in self.ranks])
        times = np.array(self.repetitions)
        groups = sorted(set(self.repetitions))
        each = self.level / len(groups)
        rows = [_row(bits[times == group], group, each) for group in groups]
        broken = any(row["above_null"] for row in rows if row["repetitions"] == 0)
        learnt = [row["repetitions"] for row in rows if row["above_null"] and row["repetitions"]]
        return {
            "exposures": bits.tolist(),
            "ceiling": math.log2(self.space),
            "null_mean": _POINTWISE,
            "by_repetitions": rows,
            "scope": "all candidates" if self.exact else "a random sample of the candidates",
            "verdict": _verdict(broken, learnt),
        }


def _row(bits: np.ndarray[Any, np.dtype[np.float64]], group: int, each: float) -> dict[str, Any]:
    p_value = exposure_p_value(bits)
    return {
        "repetitions": group,
        "secrets": int(bits.size),
        "mean": float(bits.mean()),
        "largest": float(bits.max()),
        "p_value": p_value,
        "above_null": bool(p_value <= each),
    }


def _verdict(broken: bool, learnt: list[int]) -> str:
    if broken:
        return "no claim: secrets that were never planted are exposed too"
    if learnt:
        return f"learnt: secrets repeated {', '.join(map(str, learnt))} times are above the null"
    return "no exposure above the null"
