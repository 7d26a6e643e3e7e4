"""Where noise comes from, and how it joins a sum: on a grid, exactly, from a stream cipher.

A sum is put on a public grid and gets round(s·Z) steps of noise, Z standard Gaussian. That is the
continuous Gaussian mechanism on the sum's place on the grid, followed by rounding, so every bound
for the Gaussian holds for it; and unlike a float with noise, the result has no low digits that
betray what the noise was added to. The draws are exact: as likely as the Gaussian's mass of their
cell, not near it. docs/noise.md has the argument with its constants.

A source knows nothing of plans: scale and order are `plan`'s. `seeded_source` is for tests and
method studies: whoever knows the seed can subtract the noise.
"""

from sordino.privacy.noise.grid import (
    check_sum,
    grid_step,
    noise_scale,
    release_on_grid,
    rounded_sensitivity,
)
from sordino.privacy.noise.sources import (
    SEEDED_LABEL,
    SYSTEM_LABEL,
    NoiseSource,
    seeded_source,
    system_source,
)

__all__ = [
    "SEEDED_LABEL",
    "SYSTEM_LABEL",
    "NoiseSource",
    "check_sum",
    "grid_step",
    "noise_scale",
    "release_on_grid",
    "rounded_sensitivity",
    "seeded_source",
    "system_source",
]
