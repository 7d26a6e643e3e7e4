"""What a run may say of itself: whom it protects against, and what its noise's source is worth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sordino.server.report.schema import RunReport

_PROTECTED = {"record": "Each record", "user": "Each user, with all of their records,"}
_AGAINST = {
    "local": "against everyone, the coordinator included",
    "central": "against everyone but the coordinator",
    "distributed": "against everyone but a coalition above the threshold",
    "none": "against no one",
}
_TRUST = {
    "local": "local: each upload is private by itself, so that no one has to be trusted, "
    "the coordinator included",
    "central": "central: the coordinator sees clipped updates and is trusted to add the noise",
    "distributed": "distributed: the coordinator sees only the sum; a coalition above the "
    "threshold is trusted not to form",
    "none": "none: nothing is protected",
}


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Whether the run may claim its ε, how loudly to show the noise's source, and why."""

    claims: bool
    style: Literal["settled", "caution", "danger"]
    note: str


def protected(unit: str) -> str:
    """The unit, to begin a sentence with."""
    return _PROTECTED[unit]


def against(trust: str) -> str:
    """Whom a trust model protects against, to end a sentence with."""
    return _AGAINST[trust]


def trust_in_words(trust: str) -> str:
    """A trust model and what it asks one to believe."""
    return _TRUST[trust]


def noise_standing(report: RunReport) -> Standing:
    """What the run's noise is worth. A claim needs a bound, and noise that no seed gives away."""
    source = report.noise.source
    if report.guarantee.epsilon.pld is None or report.guarantee.trust == "none":
        return Standing(claims=False, style="danger", note="Updates left the clients as they were.")
    if "seeded" in source or "not private" in source:
        note = "The noise can be drawn again from the seed: use such a run to study methods only."
        return Standing(claims=False, style="danger", note=note)
    if "not hardened" in source:
        note = (
            "ε is that of ideal Gaussian noise. Noise drawn in floating point can, in principle, "
            "be told apart from it by its last digits; ε does not cover that."
        )
        return Standing(claims=True, style="caution", note=note)
    note = "ε is that of the noise as it was drawn."
    return Standing(claims=True, style="settled", note=note)
