"""ε of what devices have released to a run, by groups of devices that answered as often.

By the run's plans and by how many rounds and paid looks a device answered: nothing that it tells.
An answer that was refused, or cut off, has left the device all the same, and is counted. Rounds
that are over don't change, so each is counted once.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from sordino.privacy.accounting import Guarantee
from sordino.server import spending
from sordino.server.fleet_rounds import Fleet
from sordino.server.store import Reader, Round, Run, Task, Upload
from sordino.server.store.records import FINAL_ROUNDS

MOST_GROUPS: Final = 8
"""More are joined; each device is then bounded by the one of its group that released most."""

_Key = tuple[tuple[str, int], ...]
"""How many rounds a device answered under each plan, by the plan's hash, sorted."""

_AT_ONCE: Final = 10_000  # values in a query


@dataclass(frozen=True, kw_only=True)
class Group:
    """Devices that released about as much to a run.

    Attributes:
        devices: How many they are; None: not told, but for it being every user.
        fewest: Rounds that each of them answered at least, if not in full.
        most: And at most: what the guarantee is of.
        guarantee: ε, for both units, with all that it means.
    """

    devices: int | None
    fewest: int
    most: int
    guarantee: Guarantee


@dataclass
class _Tally:
    """What is known of a run's answers, up to a round after which none has changed."""

    through: int = 0
    answered: dict[str, Counter[str]] = field(default_factory=dict)


class Spent:
    """Counts the answers of each run once. Any thread may ask.

    Args:
        fleet: Whose.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._lock = threading.Lock()
        self._tallies: dict[str, _Tally] = {}

    def groups(self, rows: Reader, run: Run) -> tuple[Group, ...]:
        """The groups of a run, those that released least first; nothing where nobody answered.

        Under central trust it is one: whoever takes part, by the sums that were released.
        """
        if run.trust == "central":
            return self._released(rows, run)
        with self._lock:
            answered = self._count(rows, run.run_id)
            for looks in rows.all(Run, measures=run.run_id):
                for name, counts in self._count(rows, looks.run_id).items():
                    answered.setdefault(name, Counter()).update(counts)
        joined = join(Counter(tuple(sorted(each.items())) for each in answered.values()))
        return tuple(
            Group(
                devices=devices,
                fewest=fewest,
                most=_rounds(key),
                guarantee=self._guarantee(run, key, "that a device has answered"),
            )
            for key, devices, fewest in joined
        )

    def _released(self, rows: Reader, run: Run) -> tuple[Group, ...]:
        """What was charged for sums of users' updates, those included whose noise was lost."""
        over = rows.all(Round, run_id=run.run_id, state=("aggregated", "published", "failed"))
        counts = Counter(
            one.plan for one in over if one.state != "failed" or one.reason == "release-lost"
        )
        if not counts:
            return ()
        key = tuple(sorted(counts.items()))
        total = _rounds(key)
        found = self._guarantee(run, key, "that were released")
        return (Group(devices=None, fewest=total, most=total, guarantee=found),)

    def _guarantee(self, run: Run, key: _Key, which: str) -> Guarantee:
        read = self._fleet.artefacts.read
        plans = [(read(plan), number) for plan, number in key if plan != run.plan]
        plans.append((read(run.plan), dict(key).get(run.plan, 0)))  # whose δ and trust it is
        return spending.of_rounds(tuple(plans), f"{_rounds(key)} rounds {which}, of this run alone")

    def _count(self, rows: Reader, run_id: str) -> dict[str, Counter[str]]:
        """How often each device answered: what is over from the tally, the rest counted anew."""
        tally = self._tallies.setdefault(run_id, _Tally())
        rounds = rows.all(Round, order="round", after=tally.through, run_id=run_id)
        plans = {one.round: one.plan for one in rounds}
        sent = _sent(rows, rows.all(Task, order="round", after=tally.through, run_id=run_id))
        unfinished = [one.round for one in rounds if one.state not in FINAL_ROUNDS]
        tally.through = max(plans, default=tally.through)
        if unfinished:
            tally.through = min(unfinished) - 1
        _add(tally.answered, [one for one in sent if one.round <= tally.through], plans)
        now = {name: Counter(counts) for name, counts in tally.answered.items()}
        _add(now, [one for one in sent if one.round > tally.through], plans)
        return now


def _sent(rows: Reader, tasks: Sequence[Task]) -> list[Task]:
    """The tasks for which an answer was announced, whatever became of it."""
    names = [task.task_id for task in tasks]
    begun: set[str] = set()
    for begin in range(0, len(names), _AT_ONCE):
        part = tuple(names[begin : begin + _AT_ONCE])
        begun |= {upload.task_id for upload in rows.all(Upload, task_id=part)}
    return [task for task in tasks if task.task_id in begun]


def _add(
    answered: dict[str, Counter[str]], tasks: Sequence[Task], plans: Mapping[int, str]
) -> None:
    for task in tasks:
        answered.setdefault(task.device_id, Counter())[plans[task.round]] += 1


def join(counted: Mapping[_Key, int]) -> list[tuple[_Key, int, int]]:
    """Join what devices answered into few groups.

    Args:
        counted: How many devices answered the same.

    Returns:
        Of each group: an upper bound of what any of its devices answered, under each plan; how many
        devices it has; the fewest rounds that one of them answered. Those with fewest first.

    >>> join({(("p", 1),): 5, (("p", 3),): 2})
    [((('p', 1),), 5, 1), ((('p', 3),), 2, 3)]
    """
    keys = sorted(counted, key=lambda key: (_rounds(key), key))
    size = -(-len(keys) // MOST_GROUPS) or 1
    parts = [keys[begin : begin + size] for begin in range(0, len(keys), size)]
    return [(_bound(part), sum(counted[key] for key in part), _rounds(part[0])) for part in parts]


def _bound(keys: Sequence[_Key]) -> _Key:
    most: Counter[str] = Counter()
    for key in keys:
        most |= Counter(dict(key))
    return tuple(sorted(most.items()))


def _rounds(key: _Key) -> int:
    return sum(number for _, number in key)
