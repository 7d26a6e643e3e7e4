"""Agents with a session of no model, before a coordinator that serves over real TLS."""

from __future__ import annotations

import multiprocessing
import multiprocessing.context
import multiprocessing.process
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from sordino.client.agent.home import only_agent
from sordino.client.agent.loop import Agent
from sordino.client.agent.membership import join_fleet
from sordino.client.agent.open import open_agent
from sordino.client.agent.settings import AgentSettings, DeviceSettings
from sordino.client.agent.timing import Surroundings
from sordino.client.app import make_app
from sordino.client.device import read_conditions
from sordino.client.session import NodeSettings
from sordino.core import app as flower
from sordino.core.canonical import sha256_hex
from sordino.privacy.ledger import read_ledger
from sordino.privacy.noise import seeded_source
from sordino.privacy.policy import Work
from sordino.server import fleet_rounds as fr
from sordino.server.store import Round, Run
from support import devices, fleets
from support.federation import LORA, MANIFEST, TRAIN, TinySession, make_plan
from support.fleets import RUN, get
from support.journal import Journal

SETTINGS = f"""
[lora]
rank = {LORA.rank}
targets = {list(LORA.targets)}

[train]
local_steps = {TRAIN.local_steps}
learning_rate = {TRAIN.learning_rate}
"""
BASE = b"GGUF"
LEDGER = Path("state/ledger.db")


@contextmanager
def coordinator(folder: Path, **changes: Any) -> Iterator[devices.Coordinator]:
    """A coordinator whose runs train the adapter of `support.federation`."""
    with (
        # The process', which coordinator and agents in one share: no end of a block may unset it.
        flower.task_identity(run_id=1, node_id=1),
        devices.coordinator(folder, work=fr.AdapterWork, **changes) as at,
    ):
        yield at


def start(at: devices.Coordinator, **changes: Any) -> None:
    """Start a run of the adapter, and ask whoever is enrolled."""
    plan = changes.pop("plan", None) or make_plan(rounds=changes.get("rounds", 3))
    given = {
        "settings": SETTINGS,
        "trust": plan.trust,
        "plan": plan.canonical(),
        "manifest": MANIFEST.canonical(),
        "rounds": plan.rounds,
        "cohort": 1,
    }
    base = changes.pop("base", BASE)
    source = at.folder / "base.gguf"
    source.write_bytes(base)
    run = fleets.new_run(fr.keep_base(at.fleet, source), **{**given, **changes})
    fr.start_run(at.fleet, "start", run)
    at.advance()


def advance_until(at: devices.Coordinator, holds: Callable[[], Any]) -> Any:
    """Let the rounds go on until something is true."""

    def look() -> Any:
        at.advance()
        return holds()

    return devices.until(look)


def done(at: devices.Coordinator) -> bool:
    """Whether the run is, and every round of it published."""
    over = get(at.fleet, Run, RUN).state == "done"
    states = {row.state for row in fleets.rows_of(at.fleet, Round)}
    assert not over or states == {"published"}, states
    return over


# --- an agent ----------------------------------------------------------------------------------


class Watched:
    """A noise source whose draws are in a journal that outlasts the process."""

    label, private = "watched: for tests", False

    def __init__(self, session: WatchedSession, run_id: str, number: int) -> None:
        self.session, self.number = session, number
        self.inner = seeded_source(os.getpid(), session.client_id, run_id, str(number))

    def coins(self, size: int) -> Any:
        return self.inner.coins(size)

    def rounded_gaussian(self, size: int, scale: float) -> Any:
        self.session.at("noise:asked")
        self.session.journal.write("draw", self.number, os.getpid())
        drawn = self.inner.rounded_gaussian(size, scale)
        self.session.at("noise:drawn")
        return drawn


class WatchedSession(TinySession):
    """The small session on a watched source."""

    at: Callable[[str], None] = staticmethod(lambda step: None)

    @property
    def journal(self) -> Journal:
        return Journal(self.state_dir.parent / "draws")

    def noise_source(self, run_id: str, number: int) -> Watched:
        return Watched(self, run_id, number)


def opener(at: Callable[[str], None], **changes: Any) -> Callable[[Any], TinySession]:
    """Opens one session for each configuration, as `warm_session` does."""

    @lru_cache
    def opened(model: str, state: str) -> TinySession:
        path = Path(model)
        base = path.read_bytes() if path.is_file() else BASE
        session = WatchedSession("alice", Path(state), base_sha256=sha256_hex(base), **changes)
        session.at = at
        return session

    return lambda config: opened(config["model"], config["state_dir"])


def make_agent(
    folder: Path,
    address: str,
    token: str,
    around: Surroundings,
    *,
    fleet_address: str = "",
    agent: AgentSettings | None = None,
    work: Work | None = None,
    at: Callable[[str], None] = lambda step: None,
    conditions: Callable[[], dict[str, bool]] | None = None,
    seeded: bool = False,
    **session: Any,
) -> Agent:
    settings = DeviceSettings(
        node=NodeSettings(user="alice", noise_seed=0 if seeded else -1, allow_no_privacy=seeded),
        agent=agent or AgentSettings(),
        work=work or Work(),
    )
    identity = join_fleet(folder, address, token, around, fleet_address=fleet_address)
    open_session = opener(at, **session)
    return open_agent(
        folder,
        settings,
        identity,
        around,
        conditions=conditions or read_conditions,
        app=make_app(open_session, at),  # type: ignore[arg-type]
        open_session=open_session,  # type: ignore[arg-type]
        at=at,
    )


@dataclass
class Running:
    """An agent in a thread of this process."""

    agent: Agent
    folder: Path
    steps: list[str]
    errors: list[BaseException] = field(default_factory=list)
    thread: threading.Thread | None = None

    @property
    def device_id(self) -> str:
        return self.agent.desk.link.identity.device_id

    @property
    def session(self) -> TinySession:
        return self.agent.desk.sessions.installed().session  # type: ignore[return-value]

    def start(self) -> None:
        def run() -> None:
            try:
                with only_agent(self.folder):
                    self.agent.run()
            except BaseException as error:
                self.errors.append(error)

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.agent.desk.surroundings.stop.set()
        if self.thread is not None:
            self.thread.join(60)
            assert not self.thread.is_alive()


@contextmanager
def running(
    folder: Path,
    at: devices.Coordinator,
    *,
    token: str | None = None,
    port: int = 0,
    **changes: Any,
) -> Iterator[Running]:
    """Run an agent of this coordinator, enrolled if need be, until the block ends.

    With a `port` it calls there, where something stands before the coordinator.
    """
    enrolled = (folder / "identity.json").exists()
    token = token if token is not None else ("" if enrolled else at.token())
    steps: list[str] = []
    around = changes.pop("around", None) or quick()
    hook = changes.pop("hook", lambda step: None)

    def tell(step: str) -> None:
        steps.append(step)
        hook(step)

    service = at.service
    agent = make_agent(
        folder,
        service.enroll_address,
        token,
        around,
        fleet_address=f"127.0.0.1:{port}" if port else service.fleet_address,
        at=tell,
        **changes,
    )
    made = Running(agent, folder, steps)
    made.start()
    try:
        yield made
    finally:
        made.stop()
    if made.errors:
        raise made.errors[0]


def quick(most_s: float = 0.05) -> Surroundings:
    """Surroundings whose waits are short: how long they should be is tested by itself."""
    stop = threading.Event()
    return Surroundings(stop=stop, sleep=lambda seconds: stop.wait(min(seconds, most_s)))


def charges(folder: Path) -> dict[int, str]:
    """The state of each round that the agent's ledger knows."""
    path = folder / LEDGER
    if not path.exists():
        return {}
    (book,) = read_ledger(path).values()
    return {one.reserve.round: one.state for one in book.charges.values()}


# --- agents that are killed --------------------------------------------------------------------

STEPS = [
    "hello:answered",
    "task:pulled",
    "task:noted",
    "task:taken",
    "chunk:fetched",
    "adapter:here",
    "task:checked",
    "reserve:written",
    "reserve:durable",
    "commit:written",
    "commit:durable",
    "noise:asked",
    "noise:drawn",
    "update:trained",
    "update:kept",
    "released:written",
    "released:durable",
    "update:ready",
    "answer:kept",
    "upload:offered",
    "chunk:sent",
    "upload:answered",
    "task:forgotten",
]
"""Every labelled step of a round after a device's first, in order."""

ARMED = "armed"
LOST = STEPS[STEPS.index("commit:durable") : STEPS.index("update:kept")]
"""Killed at one of these, a round is charged and nothing of it ever leaves."""


def live(folder: Path, service: tuple[str, str], token: str, kill_at: str, times: int) -> None:
    """An agent in a process of its own: armed, it dies when it comes to a step the n-th time."""
    left = [times]

    def at(step: str) -> None:
        if step == kill_at and (folder / ARMED).exists():
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    enroll, fleet = service
    with only_agent(folder):
        make_agent(folder, enroll, token, quick(), fleet_address=fleet, at=at).run()


def spawn(
    folder: Path, at: devices.Coordinator, kill_at: str = "", times: int = 1
) -> multiprocessing.process.BaseProcess:
    """Start an agent in a process of its own, from one that has imported everything already."""
    enrolled = (folder / "identity.json").exists()
    service = (at.service.enroll_address, at.service.fleet_address)
    child = _server().Process(
        target=live, args=(folder, service, "" if enrolled else at.token(), kill_at, times)
    )
    child.start()
    return child


@lru_cache
def _server() -> multiprocessing.context.ForkServerContext:
    # The path is the parent's: pytest's own additions aren't in the environment.
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["support.warm_agents"])
    return context
