"""Figures with everything without which they would mean nothing, and their second opinions."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import Literal

NOT_BOUNDED = "not bounded"
PRV_RELATIVE, PRV_ABSOLUTE = 0.01, 0.011
"""How far an estimate by PRV may be from the headline; its own error is about 0.01."""

RDP_TOLERANCE = 2e-4
"""RDP on the same orders is the same arithmetic: the difference is rounding to 4 decimals."""


@dataclass(frozen=True, kw_only=True)
class Guarantee:
    """A figure of ε with everything without which it would mean nothing.

    `epsilon_*` bound the protected `unit`; `user` says what holds for a whole user, and
    `record_epsilon` and `user_epsilon` give both units side by side (infinite: not bounded).
    """

    trust: Literal["local", "central", "distributed", "none"]
    unit: str
    neighbouring: str
    sampling: str
    accountant: str
    composition: str
    delta: float
    epsilon_pld: float
    epsilon_rdp: float
    user: str = NOT_BOUNDED
    record_epsilon: float = float("inf")
    user_epsilon: float = float("inf")

    @property
    def accountants_agree(self) -> bool:
        """False if RDP, which is looser, came out below PLD: then neither may be published."""
        return accountants_agree(self.epsilon_pld, self.epsilon_rdp)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Whether another library's figures bear ours out, and the sentence that says so."""

    agrees: bool
    statement: str


def accountants_agree(epsilon_pld: float, epsilon_rdp: float) -> bool:
    """Whether RDP is not below PLD, as it must be.

    Past 700, where e^ε leaves float's range, PLD is a coarse (but sound) bound and isn't compared.
    """
    return epsilon_rdp >= epsilon_pld or epsilon_pld > 700


def accountant() -> str:
    """Name and version of what the figures come from, as reports print it."""
    return f"dp-accounting {version('dp-accounting')}, pessimistic PLD; RDP as a check"


def compare(*, pld: float, rdp: float, other_prv: float, other_rdp: float, name: str) -> Comparison:
    """Hold our figures against another library's for the same steps.

    Args:
        pld: Our headline.
        rdp: Our RDP, on the orders that the other's figure is from.
        other_prv: Its PRV figure, an estimate: within max(1 %, 0.011) of ours, on either side.
        other_rdp: Its RDP figure on those orders: equal, up to rounding.
        name: The library, as the statement names it.
    """
    allowed = max(PRV_RELATIVE * pld, PRV_ABSOLUTE)
    off = []
    if not abs(other_prv - pld) <= allowed:
        off.append(f"its PRV gives {other_prv:.4f}, more than {allowed:.3f} from PLD's {pld:.4f}")
    if not abs(other_rdp - rdp) <= RDP_TOLERANCE + 1e-6 * rdp:
        off.append(f"its RDP gives {other_rdp:.4f} and ours {rdp:.4f} on the same orders")
    if off:
        return Comparison(agrees=False, statement=f"{name} disagrees: {'; '.join(off)}")
    return Comparison(
        agrees=True,
        statement=(
            f"{name} agrees: PRV {other_prv:.4f}, within {allowed:.3f} of PLD's {pld:.4f}; RDP on "
            f"the same orders {other_rdp:.4f}, as ours"
        ),
    )
