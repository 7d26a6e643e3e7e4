"""The clipping rule: by how much each record's gradient is scaled before it joins the sum.

One rule, shared by training, tests and audits. It sees norms only; whoever holds the gradients
multiplies. A factor of 0 means *leave the record out*: zero times NaN is NaN, so a record that
isn't finite must be replaced by zeros, not multiplied.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sordino.core.errors import PlanError, expected


def clip_factors(norms: ArrayLike, clip_norm: float) -> NDArray[np.floating[Any]]:
    """Scale factors that bring every record's L2 norm down to `clip_norm`.

    The guarantee: for every record, `factor * norm <= clip_norm` in the arithmetic of the result
    (and for float32 norms also exactly), so that under add-or-remove-one a record moves the clipped
    sum by at most `clip_norm`. A norm that is NaN, infinite or negative gets 0; a zero norm gets 1.

    Args:
        norms: L2 norm of each record's whole gradient, shape (records,); float32 stays float32,
            anything else becomes float64.
        clip_norm: The bound C, finite and > 0.

    Returns:
        Factors in [0, 1], the shape of `norms`.

    Raises:
        PlanError: `clip_norm` is not finite and positive.

    >>> clip_factors([0.5, 2.0, 0.0, -0.0, float("nan"), float("inf")], 1.0).tolist()
    [1.0, 0.5, 1.0, 1.0, 0.0, 0.0]
    """
    if not (math.isfinite(clip_norm) and clip_norm > 0):
        raise PlanError(expected("clip_norm", clip_norm, "finite and > 0"))
    given = np.asarray(norms)
    result_type = np.float32 if given.dtype == np.float32 else np.float64
    wide = given.astype(np.float64)
    usable = np.isfinite(wide) & (wide >= 0)
    safe = np.where(usable, np.abs(wide), 1.0)  # C over a zero of either sign is +inf
    with np.errstate(divide="ignore", over="ignore"):
        factors = np.minimum(1.0, clip_norm / safe).astype(result_type)
    # C/norm rounds to nearest, upwards half of the time: step down until the product is within C.
    while (over := factors.astype(np.float64) * safe > clip_norm).any():
        factors = np.where(over, np.nextafter(factors, result_type(0)), factors)
    return np.where(usable, factors, result_type(0))
