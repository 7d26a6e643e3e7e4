"""What drives a fleet's runs: the one round loop, over rounds that the store keeps.

A run's standing is read from the store alone, so that a restart is the same call as on any other
day, and an operator's commands take effect between two rounds.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
import tomllib
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Final

from flwr.app import Context, RecordDict

from sordino.core import adapters
from sordino.core import app as flower
from sordino.core.config import ExperimentConfig
from sordino.core.contract import Artefact, decode_adapter, decode_manifest, encode_adapter
from sordino.core.errors import RoundFailedError, RoundGivenUpError, StoreError
from sordino.core.records import Tensors
from sordino.core.settings import build
from sordino.privacy.plan import CentralPlan, decode_metric_plan, decode_plan
from sordino.server import fleet_rounds as fr
from sordino.server.app import federation_app
from sordino.server.fleet_rounds.context import tell
from sordino.server.grid import LOOK_S, Coordinator, FleetGrid, node_id, opening_of
from sordino.server.metrics import looks_of
from sordino.server.release import Releases
from sordino.server.rounds import Turn
from sordino.server.store import Reader, Round, Run, Task
from sordino.server.store.records import FINAL_ROUNDS
from sordino.server.strategy import RoundReport, SordinoStrategy

log = logging.getLogger(__name__)

Choose = Callable[[int, Sequence[str], int], Sequence[str]]
"""Whom of the devices at hand a round asks, given its number and how many it wants."""

_FIRST_REST_S: Final = 1.0
_LONGEST_REST_S: Final = 60.0


def at_random(number: int, devices: Sequence[str], wanted: int) -> Sequence[str]:
    """Any of them, as many as are wanted. Nothing is claimed of this choice."""
    return secrets.SystemRandom().sample(list(devices), min(wanted, len(devices)))


@dataclass(frozen=True, kw_only=True)
class DurableRounds:
    """`Rounds` of a run that the store keeps.

    Attributes:
        coordinator: The fleet.
        run_id: Which run.
        releases: Makes what a central plan needs: the coordinator's own ledger, noise and kept
            releases, the same for all plans of the fleet.
        choose: Whom a round asks, where no secret coins pick.
    """

    coordinator: Coordinator
    run_id: str
    releases: Callable[[CentralPlan], Releases]
    choose: Choose = at_random
    _last: dict[str, Tensors] = field(default_factory=dict, repr=False)  # spares reading it back

    def next(self) -> Turn | None:
        """See `Rounds.next`. Waits for devices; None: the run waits for an operator, or is over."""
        while (now := fr.plan_round(self._fleet, self.run_id)) is not None:
            if now.state == "planned":
                return self._first(now.round)
            turn = self._again(now)
            if now.state != "aggregated" or self._look(turn) is not None:
                return turn
            self._publish(now.round)
        return None

    def keep(self, turn: Turn, adapter: Tensors, report: RoundReport) -> bool:
        """See `Rounds.keep`."""
        self._held(turn)
        if report.settled == "abandoned":
            self._fail(turn.number, "release-lost")
            return False
        self._fleet.at("adapter:made")
        data = _encoded(turn, adapter)
        made = fr.aggregate_round(self._fleet, self.run_id, turn.number, data)
        if made.state != "aggregated":  # it was stopped, or failed, meanwhile
            return False
        self._last.clear()
        self._last[made.adapter_after] = adapter
        return True

    def publish(self, turn: Turn, adapter: Tensors, report: RoundReport) -> None:
        """See `Rounds.publish`. A look that was taken is over first."""
        looks, look = turn.strategy.looks, self._look(turn)
        seen = looks.after(turn.number) if looks else None
        if look is not None and seen is not None:
            fr.publish_look(
                self._fleet,
                look.run_id,
                seen.look,
                metric=seen.metric,
                value=seen.value,
                noise_std=seen.noise_std,
                answers=seen.received,
            )
        self._publish(turn.number)

    def fail(self, turn: Turn, error: RoundFailedError) -> None:
        """See `Rounds.fail`. Its number and its charges are used up; so many end the run."""
        log.warning("%s: %s", self.run_id, error)
        self._fail(turn.number, "too-few-updates")

    @property
    def _fleet(self) -> fr.Fleet:
        return self.coordinator.fleet

    def _first(self, number: int) -> Turn | None:
        """A planned round's turn, once there are devices for it."""
        who = self.coordinator
        while not who.stopping.is_set():
            heard = who.bell.count
            with self._fleet.store.read() as rows:
                run = fr.require(rows, Run, self.run_id)
            if run.state != "running":
                return None
            ready, private = who.ready(), run.trust == "central"
            if len(ready) >= (1 if private else run.min_updates):
                asked = ready if private else self.choose(number, ready, run.cohort + run.extra)
                return self._turn(run, number, run.plan, run.adapter, run.min_updates, asked)
            who.bell.wait(heard, LOOK_S)
        return None

    def _again(self, opened: Round) -> Turn:
        """The turn of a round that was opened before: with its own plan, adapter and cohort."""
        with self._fleet.store.read() as rows:
            run = fr.require(rows, Run, self.run_id)
            tasks = rows.all(Task, run_id=self.run_id, round=opened.round)
        asked = [task.device_id for task in tasks]
        least = opened.min_updates or run.min_updates
        turn = self._turn(run, opened.round, opened.plan, opened.adapter_before, least, asked)
        made = self._tensors(turn.strategy, opened.adapter_after) if opened.adapter_after else None
        return replace(turn, drawn=True, made=made)

    def _turn(
        self, run: Run, number: int, plan: str, before: str, least: int, asked: Sequence[str]
    ) -> Turn:
        read = self._fleet.artefacts.read
        with self._fleet.store.read() as rows:
            metrics = rows.all(Run, measures=run.run_id)
        metric = read(metrics[0].plan) if metrics else None
        strategy = strategy_of(
            run, read(plan), read(run.manifest), least, self.releases, metric=metric
        )
        return Turn(
            number=number,
            strategy=strategy,
            adapter=self._tensors(strategy, before),
            node_ids=[node_id(name) for name in sorted(asked)],
        )

    def _tensors(self, strategy: SordinoStrategy, sha256: str) -> Tensors:
        """All tensors of an adapter, by its artefact; by none: the initial one."""
        if sha256 in self._last:
            return self._last[sha256]
        data = self._fleet.artefacts.read(sha256) if sha256 else b""
        tensors = decode_adapter(data, Artefact.of(data)) if data else {}
        return adapters.complete_adapter(tensors, strategy.manifest, strategy.lora.init_seed)

    def _look(self, turn: Turn) -> Round | None:
        """The look that follows a round, as the store has it, unless it is over."""
        looks = turn.strategy.looks
        number = looks.number(turn.number) if looks else None
        if looks is None or number is None:
            return None
        run_id = looks.plan.run_id
        with self._fleet.store.read() as rows:
            look = rows.find(Round, run_id, number)
        look = look or Round(run_id=run_id, round=number)
        return None if look.state in FINAL_ROUNDS else look

    def _held(self, turn: Turn) -> None:
        """A round that asked nobody, for its coins picked none, is opened and closed here."""
        with self._fleet.store.read() as rows:
            now = fr.require(rows, Round, self.run_id, turn.number)
        if now.state == "planned":
            task = turn.strategy.task(turn.number, turn.adapter)
            opening = opening_of(task, (), turn.strategy.federation.round_timeout_s)
            now = fr.open_round(self._fleet, self.run_id, turn.number, opening)
            if now.state == "planned":
                raise RoundGivenUpError(f"{self.run_id} isn't running: its round stays planned")
        if now.state in fr.COLLECTING:
            fr.close_round(self._fleet, self.coordinator.work, self.run_id, turn.number)

    def _publish(self, number: int) -> None:
        fr.publish_round(self._fleet, self.run_id, number)
        fr.collect_garbage(self._fleet)

    def _fail(self, number: int, reason: str) -> None:
        fr.fail_round(self._fleet, self.run_id, number, reason)
        fr.collect_garbage(self._fleet)


def strategy_of(
    run: Run,
    plan: bytes,
    manifest: bytes,
    min_updates: int,
    releases: Callable[[CentralPlan], Releases],
    *,
    metric: bytes | None = None,
) -> SordinoStrategy:
    """The strategy of a run's round under a plan: its settings are the run's own, as written."""
    experiment = _experiment(run.settings)
    decoded, listing = decode_plan(plan), decode_manifest(manifest, Artefact.of(manifest))
    looks = looks_of(
        experiment,
        decode_metric_plan(metric) if metric else None,
        manifest=listing,
        base_sha256=run.base,
    )
    return SordinoStrategy(
        plan=decoded,
        manifest=listing,
        base_sha256=run.base,
        looks=looks,
        lora=experiment.lora,
        train=experiment.train,
        federation=replace(
            experiment.federation,
            min_updates=min_updates,
            round_timeout_s=run.timeout_ms / 1000,
        ),
        releases=releases(decoded) if isinstance(decoded, CentralPlan) else None,
    )


@lru_cache(maxsize=64)
def _experiment(settings: str) -> ExperimentConfig:
    return build(ExperimentConfig, tomllib.loads(settings))


def drive(
    coordinator: Coordinator,
    run_id: str,
    releases: Callable[[CentralPlan], Releases],
    choose: Choose = at_random,
) -> None:
    """Run a run's rounds until it is over, waits for an operator, or the coordinator stops.

    The caller is within `core.app.task_identity`.
    """
    grid = FleetGrid(coordinator, run_id)
    rounds = DurableRounds(coordinator=coordinator, run_id=run_id, releases=releases, choose=choose)
    app = federation_app(rounds)
    while not coordinator.stopping.is_set():
        heard = coordinator.bell.count
        try:
            app(grid, Context(1, 1, {}, RecordDict(), {}))
        except RoundGivenUpError as error:
            log.info("%s: %s", run_id, error)
            coordinator.bell.wait(heard, LOOK_S)
        else:
            return


class Drivers:
    """A thread for each run that has something to do; use it as a context manager.

    A run whose driver fails (a disk is full, a file is damaged) rests, longer each time, and is
    taken up again where the store says that it stands.

    Args:
        coordinator: The fleet.
        folder: The coordinator's own: under central trust its ledger and releases are kept there.
        choose: Whom a round asks.
    """

    def __init__(self, coordinator: Coordinator, folder: Path, choose: Choose = at_random) -> None:
        self._coordinator = coordinator
        self._folder = folder
        self._choose = choose
        self._threads: dict[str, threading.Thread] = {}
        self._rests: dict[str, tuple[float, float]] = {}  # until when, and how long
        self._stack = ExitStack()
        self._watcher = threading.Thread(target=self._watch, name="drivers", daemon=True)

    def __enter__(self) -> Drivers:
        self._stack.enter_context(flower.quiet_flower())
        self._stack.enter_context(flower.task_identity(run_id=1, node_id=1))
        self._watcher.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._coordinator.stop()
        self._watcher.join()
        for thread in self._threads.values():
            thread.join()
        self._stack.close()

    def _watch(self) -> None:
        who = self._coordinator
        while not who.stopping.is_set():
            heard = who.bell.count
            for run_id in self._due():
                name = f"run {run_id}"
                thread = threading.Thread(target=self._drive, args=(run_id,), name=name)
                self._threads[run_id] = thread
                thread.start()
            who.bell.wait(heard, LOOK_S)

    def _due(self) -> list[str]:
        now = time.monotonic()
        idle = [run_id for run_id, (until, _) in self._rests.items() if until > now]
        busy = {run_id for run_id, thread in self._threads.items() if thread.is_alive()}
        with self._coordinator.fleet.store.read() as rows:
            return [
                run.run_id
                for run in rows.all(Run, state=("running", "paused", "failed"), measures="")
                if run.run_id not in busy and run.run_id not in idle and _has_work(rows, run)
            ]

    def _drive(self, run_id: str) -> None:
        try:
            drive(self._coordinator, run_id, self._releases, self._choose)
        except Exception as error:  # whatever it was: the run goes on later, the others now
            _, last = self._rests.get(run_id, (0.0, 0.0))
            if not last:
                self._alarm(run_id, type(error).__name__)
            rest = min(max(2 * last, _FIRST_REST_S), _LONGEST_REST_S)
            self._rests[run_id] = time.monotonic() + rest, rest
            log.exception("run %s stopped, and goes on in %g s", run_id, rest)
        else:
            self._rests.pop(run_id, None)

    def _alarm(self, run_id: str, why: str) -> None:
        """Tell operators, once for each time that it stands still, and no more than a word."""
        message = f"{run_id} stands still ({why}) and is tried again: see the coordinator's log"
        fleet = self._coordinator.fleet
        with suppress(StoreError), fleet.store.write("raise-alarm") as tx:
            tell(fleet, tx, "alarm-run-waits", run_id=run_id, message=message)

    def _releases(self, plan: CentralPlan) -> Releases:
        return Releases(plan=plan, folder=self._folder)


def _has_work(rows: Reader, run: Run) -> bool:
    """Whether a run goes on by itself: it runs, or a round of it is under way."""
    if run.state == "running":
        return True
    newest = rows.all(Round, order="-round", limit=1, run_id=run.run_id)
    return bool(newest) and newest[0].state in (*fr.COLLECTING, "closing", "aggregated")


def _encoded(turn: Turn, adapter: Tensors) -> bytes:
    """The artefact of an adapter: what differs from the initial one, or what was trained."""
    strategy = turn.strategy
    changed = adapters.changed_tensors(adapter, strategy.manifest, strategy.lora.init_seed)
    trained = {name: adapter[name] for name in strategy.trained(turn.number).names}
    return encode_adapter(changed or trained)
