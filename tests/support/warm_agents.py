"""For the process that agents are forked from: what each would do anew is done here, once."""

import sordino.client.model.blocks
from sordino.privacy.noise import seeded_source
from support import agents

__all__ = ["agents", "sordino"]

seeded_source(0, "warm").rounded_gaussian(1, 1e6)  # makes the noise's tables
