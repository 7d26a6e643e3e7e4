"""Real mechanisms for tests: charged in a real ledger, with the noise held still where asked."""

import numpy as np

from sordino.privacy.ledger import Ledger
from sordino.privacy.noise import seeded_source
from sordino.privacy.plan import Plan, open_round


class Still:
    """A source without noise whose every record is sampled: what is left is the clipped sum."""

    label = "still: for tests"
    private = False

    def rounded_gaussian(self, size, scale):
        return np.zeros(size, np.int64)

    def coins(self, size):
        return np.zeros(size, np.uint64)


def plan(run_id="test", **changes):
    settings = {
        "run_id": run_id,
        "rounds": 1,
        "steps_per_round": 1,
        "sampling_rate": 0.5,
        "noise_multiplier": 1.0,
        "clip_norm": 0.05,
        "divisor": 3.0,
        "delta": 1e-5,
    }
    return Plan(**{**settings, **changes})


def mechanism(folder, source=None, **changes):
    """Open round 1 of a plan, charged in a ledger of its own."""
    made = plan(**changes)
    folder.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(folder / f"{len(list(folder.iterdir()))}.jsonl", "client")
    return open_round(made, ledger.charge(made, 1, "data"), source or seeded_source(0))
