"""Settings of a simulated population: who holds which records."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from sordino.core.errors import ConfigError, expected


@dataclass(frozen=True, kw_only=True)
class PartitionConfig:
    """How a simulation deals a dataset's records out to its clients; `user`: as the data has it."""

    kind: Literal["user", "iid", "dirichlet", "quantity", "size"] = "user"
    alpha: float = 0.5  # dirichlet, quantity: the smaller, the more unlike the clients
    label_column: str = "label"  # dirichlet: whose values are dealt out
    sizes: tuple[float, ...] = ()  # size: each client's part, in proportion
    seed: int = 0  # of the dealing alone: runs with other seeds share it

    def __post_init__(self) -> None:
        if not 0 < self.alpha < math.inf:
            raise ConfigError(expected("partition.alpha", self.alpha, "finite and > 0"))
        if not all(0 < size < math.inf for size in self.sizes):
            raise ConfigError(expected("partition.sizes", self.sizes, "finite and > 0, each"))
        if bool(self.sizes) != (self.kind == "size"):
            given = "given" if self.kind == "size" else "empty"
            required = f"{given} with partition.kind = {self.kind}"
            raise ConfigError(expected("partition.sizes", self.sizes, required))
        if self.seed < 0:
            raise ConfigError(expected("partition.seed", self.seed, ">= 0"))

    def check(self, users: tuple[str, ...], clients: int) -> None:
        """Refuse what doesn't go with the users and clients of an experiment.

        Raises:
            ConfigError: Users are named whom the dealing doesn't keep, or sizes are too few.
        """
        if self.kind != "user" and users:
            required, todo = f"empty with partition.kind = {self.kind}", "say data.clients"
            raise ConfigError(expected("data.users", users, required, todo))
        if self.sizes and len(self.sizes) != clients:
            required = f"as many as data.clients ({clients})"
            raise ConfigError(expected("partition.sizes", self.sizes, required))
