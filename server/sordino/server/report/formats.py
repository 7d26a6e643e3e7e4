"""How figures are written for people: never rounded in the flattering direction."""

from __future__ import annotations

import math

from sordino.core.stats import Interval, round_down, round_up

UNKNOWN = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
NOT_BOUNDED = "not bounded"
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_THIN = "\u202f"  # groups digits and parts a figure from its unit, without a line break


def epsilon(value: float | None) -> str:
    """An upper bound, rounded up to two decimals.

    >>> epsilon(7.991), epsilon(None)
    ('8.00', 'not bounded')
    """
    return NOT_BOUNDED if value is None else f"{round_up(value, 2):.2f}"


def bound(value: float) -> str:
    """An upper bound that may be infinite.

    >>> bound(0.314), bound(float("inf"))
    ('0.32', 'not bounded')
    """
    return epsilon(value if math.isfinite(value) else None)


def power(value: float | None) -> str:
    r"""A δ in powers of ten.

    >>> power(1e-5), power(2.5e-6)
    ('10⁻⁵', '2.5 \xd7 10⁻⁶')
    """
    if value is None:
        return UNKNOWN
    mantissa, exponent = f"{value:.3e}".split("e")
    digits = mantissa.rstrip("0").rstrip(".")
    base = f"10{str(int(exponent)).translate(_SUPERSCRIPTS)}"
    return base if digits == "1" else f"{digits} \N{MULTIPLICATION SIGN} {base}"


def plain(value: float | None, decimals: int = 3) -> str:
    """A fixed number of decimals, with a real minus sign."""
    return UNKNOWN if value is None else f"{value:.{decimals}f}".replace("-", MINUS)


def signed(value: float, decimals: int = 3) -> str:
    r"""A gain, with its sign.

    >>> signed(0.0712), signed(-0.01)
    ('+0.071', '\u22120.010')
    """
    return f"{value:+.{decimals}f}".replace("-", MINUS)


def interval(value: Interval, decimals: int = 3) -> str:
    """An interval rounded outwards, so that it covers no less than it did."""
    low, high = round_down(value.low, decimals), round_up(value.high, decimals)
    return f"{signed(low, decimals)} to {signed(high, decimals)}"


def short(value: float | None) -> str:
    """As many digits as the figure needs, at most four.

    >>> short(0.78), short(1.0)
    ('0.78', '1')
    """
    return UNKNOWN if value is None else f"{value:.4g}".replace("-", MINUS)


def share(value: float | None) -> str:
    """A share in per cent.

    >>> share(0.874)
    '87.4\u202f%'
    """
    return UNKNOWN if value is None else f"{100 * value:.1f}{_THIN}%"


def count(value: int | None) -> str:
    """A whole number, its digits in groups of three.

    >>> count(12480)
    '12\u202f480'
    """
    return UNKNOWN if value is None else f"{value:,}".replace(",", _THIN)


def megabytes(value: float) -> str:
    """Megabytes (10⁶ bytes) without the unit, in about three digits."""
    return f"{value:.2f}" if value < 100 else count(round(value))


def size(value: float) -> str:
    """Bytes with the unit that suits them.

    >>> size(2_410_000)
    '2.41\u202fMB'
    """
    for limit, unit in ((1e3, "B"), (1e6, "kB"), (1e9, "MB"), (1e12, "GB")):
        if value < limit:
            return f"{value * 1e3 / limit:.3g}{_THIN}{unit}"
    return f"{value / 1e12:.3g}{_THIN}TB"


def duration(seconds: float) -> str:
    """A wall time.

    >>> duration(84.2), duration(725.0)
    ('84.2\u202fs', '12\u202fmin 5\u202fs')
    """
    if seconds < 120:
        return f"{seconds:.1f}{_THIN}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}{_THIN}h {minutes}{_THIN}min"
    return f"{minutes}{_THIN}min {rest}{_THIN}s"
