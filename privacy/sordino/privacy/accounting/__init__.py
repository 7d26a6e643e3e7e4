"""From events to ε. An event is frozen data that says all that accounting needs; ε is never stored.

The headline is dp-accounting's privacy loss distribution (PLD), built pessimistically and rounded
up. Rényi accounting (RDP) stands beside it as a check, and holds lifetime caps under adaptively
chosen plans. Central-limit figures (GDP) are too low and have no place here: a μ-GDP figure is only
the smallest μ whose curve dominates the PLD's.

Everything is under *add or remove one*: two datasets are neighbours if one has a unit more, which
is a record, or all of a user's records.
"""

from sordino.privacy.accounting.curves import (
    Dominating,
    delta_at,
    delta_curve,
    dominating_gaussian,
    gaussian_delta,
)
from sordino.privacy.accounting.divergences import check_orders
from sordino.privacy.accounting.events import (
    AdaptiveClipGaussian,
    Event,
    MetricGaussian,
    PoissonSampledGaussian,
    QuantileGaussian,
    StopGaussian,
    Unit,
    UserGaussian,
    event_fields,
    event_from_fields,
    raised_noise,
    unit_of,
)
from sordino.privacy.accounting.figures import (
    NOT_BOUNDED,
    Comparison,
    Guarantee,
    accountant,
    accountants_agree,
    compare,
)
from sordino.privacy.accounting.losses import (
    DECIMALS,
    LARGEST_NOISE,
    SMALLEST_NOISE,
    calibrate_noise,
    epsilon_for,
    epsilon_pld,
    group_epsilon,
    spent,
)
from sordino.privacy.accounting.renyi import (
    DEFAULT_ORDERS,
    Filter,
    epsilon_rdp,
)

__all__ = [
    "DECIMALS",
    "DEFAULT_ORDERS",
    "LARGEST_NOISE",
    "NOT_BOUNDED",
    "SMALLEST_NOISE",
    "AdaptiveClipGaussian",
    "Comparison",
    "Dominating",
    "Event",
    "Filter",
    "Guarantee",
    "MetricGaussian",
    "PoissonSampledGaussian",
    "QuantileGaussian",
    "StopGaussian",
    "Unit",
    "UserGaussian",
    "accountant",
    "accountants_agree",
    "calibrate_noise",
    "check_orders",
    "compare",
    "delta_at",
    "delta_curve",
    "dominating_gaussian",
    "epsilon_for",
    "epsilon_pld",
    "epsilon_rdp",
    "event_fields",
    "event_from_fields",
    "gaussian_delta",
    "group_epsilon",
    "raised_noise",
    "spent",
    "unit_of",
]
