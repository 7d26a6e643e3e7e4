"""Settings of a simulated population: who holds which records, and on which devices."""

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


@dataclass(frozen=True, kw_only=True)
class DevicesConfig:
    """The devices of a simulated fleet: their speed, links and habits, drawn from a seeded trace.

    One entry a class in each list. Nothing is assumed of any device: the figures are the user's.
    """

    classes: tuple[str, ...] = ()  # their names; empty: no fleet is simulated
    shares: tuple[float, ...] = ()  # of the population, in proportion; empty: all alike
    tokens_per_s: tuple[float, ...] = ()  # trained on
    up_mbps: tuple[float, ...] = ()
    down_mbps: tuple[float, ...] = ()
    watts: tuple[float, ...] = ()  # while it trains, over being idle
    online: float = 1.0  # the chance of a device to be there when a round begins
    online_swing: float = 0.0  # by how much of that the chance rises at night, and falls by day
    dropout: float = 0.0  # the chance of a device that was asked never to answer
    stragglers: float = 0.0  # the chance of a device to be slow in a round
    slowdown: float = 4.0  # how many times slower it is then
    start_hour: float = 0.0  # when the first round begins, local time of the devices' middle
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("tokens_per_s", "up_mbps", "down_mbps", "watts", "shares"):
            values = getattr(self, name)
            wanted = len(self.classes)
            if len(values) != wanted and not (name == "shares" and not values):
                required = f"one a class ({wanted})"
                raise ConfigError(expected(f"devices.{name}", values, required))
            if not all(0 < value < math.inf for value in values):
                raise ConfigError(expected(f"devices.{name}", values, "finite and > 0, each"))
        for name in ("online", "online_swing", "dropout", "stragglers"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ConfigError(expected(f"devices.{name}", value, "in [0, 1]"))
        if not 1 <= self.slowdown < math.inf:
            raise ConfigError(expected("devices.slowdown", self.slowdown, "finite and >= 1"))
        if not 0 <= self.start_hour < 24:
            raise ConfigError(expected("devices.start_hour", self.start_hour, "in [0, 24)"))
        if self.seed < 0:
            raise ConfigError(expected("devices.seed", self.seed, ">= 0"))
