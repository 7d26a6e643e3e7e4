"""A simulated fleet's devices: who is there, who drops out, and how long a round would have taken.

Everything is drawn from the trace's own seed, for each device and round by itself, so that neither
the order of the draws nor the run's seed changes it. The seconds and joules that come of it are
*simulated*: they stand beside what this machine took, never in its place.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from sordino.client.app import OBSERVATIONS
from sordino.core.app import records_size
from sordino.core.population import DevicesConfig
from sordino.sim.folder import RunFolder

if TYPE_CHECKING:
    from flwr.app import Message

EVENT = "simulated"
TRAIN = "train"  # Flower's own word

_DAY_H = 24.0
_ZONES_H = 3.0  # devices' clocks differ by up to this, either way
_NIGHT_H = 3.0  # when most devices are idle and on their chargers
_CLASS, _ZONE, _ONLINE, _LOST, _SLOW = range(5)


@dataclass(frozen=True)
class Fleet:
    """The devices of a run; a round's figures follow from what its clients did.

    Attributes:
        config: Classes and habits; at least one class.
    """

    config: DevicesConfig

    def device(self, client: int) -> int:
        """A client's class, by its place among the classes."""
        shares = np.array(self.config.shares or [1.0] * len(self.config.classes))
        ends = np.cumsum(shares) / shares.sum()
        return min(int(np.searchsorted(ends, self._draw(_CLASS, client))), len(ends) - 1)

    def online(self, round_number: int, client: int, elapsed_s: float) -> bool:
        """Whether a device is there when a round begins, so long after the first began."""
        config = self.config
        zone = _ZONES_H * (2 * self._draw(_ZONE, client) - 1)
        hour = config.start_hour + elapsed_s / 3600 + zone
        night = math.cos(2 * math.pi * (hour - _NIGHT_H) / _DAY_H)
        chance = config.online * (1 + config.online_swing * night)
        return self._draw(_ONLINE, client, round_number) < chance

    def lost(self, round_number: int, client: int) -> bool:
        """Whether the answer of a device that was asked never comes."""
        return self._draw(_LOST, client, round_number) < self.config.dropout

    def slow(self, round_number: int, client: int) -> bool:
        """Whether a device is a straggler in a round."""
        return self._draw(_SLOW, client, round_number) < self.config.stragglers

    def fate(
        self, round_number: int, client: int, elapsed_s: float
    ) -> Literal["", "offline", "lost"]:
        """What becomes of a round's message to a device."""
        if not self.online(round_number, client, elapsed_s):
            return "offline"
        return "lost" if self.lost(round_number, client) else ""

    def spent(
        self, round_number: int, client: int, *, tokens: float, bytes_up: float, bytes_down: float
    ) -> tuple[float, float]:
        """Seconds and joules of one device's part in a round; energy is of the training alone."""
        config, kind = self.config, self.device(client)
        slowdown = config.slowdown if self.slow(round_number, client) else 1.0
        train_s = tokens / config.tokens_per_s[kind] * slowdown
        link_s = 8e-6 * (bytes_up / config.up_mbps[kind] + bytes_down / config.down_mbps[kind])
        return train_s + link_s, train_s * config.watts[kind]

    def _draw(self, purpose: int, *place: int) -> float:
        """A number in [0, 1) that belongs to one device, or one device in one round."""
        return float(np.random.default_rng([self.config.seed, purpose, *place]).random())


class Trace:
    """What a fleet makes of one variant's rounds; a resumed run goes on at its simulated hour.

    Args:
        fleet: The devices.
        run: Where each round's line goes.
        variant: Whose rounds they are.
        first: The node id of its first client.
        states: The clients' own folders, where each notes what it trained on.
    """

    def __init__(
        self, fleet: Fleet, run: RunFolder, variant: str, first: int, states: Sequence[Path]
    ) -> None:
        self._fleet = fleet
        self._run = run
        self._variant = variant
        self._first = first
        self._states = states
        self._asked: dict[int, tuple[int, int]] = {}  # the round and its bytes down, by client

    def fate(self, message: Message) -> Literal["", "offline", "lost"]:
        """What becomes of a message; a paid look finds everybody who is asked."""
        if message.metadata.message_type != TRAIN:
            return ""
        number = int(message.metadata.group_id)
        client = message.metadata.dst_node_id - self._first
        fate = self._fleet.fate(number, client, self._elapsed_s(number))
        if fate != "offline":
            self._asked[client] = (number, records_size(message.content))
        return fate

    def note(self, number: int, bytes_up: int) -> None:
        """Write down what a round would have taken on the fleet."""
        asked = {c: size for c, (asked, size) in self._asked.items() if asked == number}
        answered, seconds, joules = 0, 0.0, 0.0
        for client, bytes_down in asked.items():
            own = self._fleet.spent(
                number,
                client,
                tokens=_tokens(self._states[client], number),
                bytes_up=bytes_up,
                bytes_down=bytes_down,
            )
            joules += own[1]
            if not self._fleet.lost(number, client):
                answered, seconds = answered + 1, max(seconds, own[0])
        self._run.log(
            EVENT,
            variant=self._variant,
            round=number,
            asked=len(asked),
            answered=answered,
            simulated_wall_s=seconds,
            simulated_joules=joules,
            simulated_elapsed_s=self._elapsed_s(number) + seconds,
        )

    def _elapsed_s(self, number: int) -> float:
        """Simulated seconds before a round."""
        told = [one for one in self._run.events(EVENT, self._variant) if one["round"] < number]
        return told[-1]["simulated_elapsed_s"] if told else 0.0


def totals(run: RunFolder, variant: str) -> tuple[float, float] | None:
    """Simulated seconds and joules of a variant; None where no fleet was simulated."""
    told = run.events(EVENT, variant)
    if not told:
        return None
    return told[-1]["simulated_elapsed_s"], sum(one["simulated_joules"] for one in told)


def _tokens(state: Path, number: int) -> int:
    """How many tokens a client trained on in a round, as its device noted."""
    path = state / OBSERVATIONS
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    own = [line for line in map(json.loads, lines) if line["round"] == number]
    return int(own[-1]["observations"]["tokens"]) if own else 0
