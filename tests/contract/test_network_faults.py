"""Real agents and the real service, with a network between them that breaks: every number adds up.

Each agent is behind a proxy of its own. Connections are cut at some byte, lose one way, stall, are
slow or doubled, and in each round some devices are gone altogether. Each device sends its own power
of two, so that a round's adapter says who is in it, and how often.
"""

from __future__ import annotations

import random
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support import fleets
from support.agents import LEDGER, Running, charges, coordinator, done, running
from support.agents import start as start_run
from support.devices import Coordinator, until
from support.farms import UNIT
from support.federation import MANIFEST, filled, initial, make_plan
from support.fleets import RUN, get, rows_of
from support.proxy import Proxy, chaos

from sordino.client.agent import link
from sordino.core import adapters
from sordino.core.contract import Artefact, decode_adapter
from sordino.privacy.plan import verify_ledger
from sordino.server.store import Accepted, Round, Run

DEVICES = 6
COHORT = 4  # a round asks all six, and goes on with four
GONE = 2  # about 30 %
SEED = 20


class Party:
    """A device in its place: its agent, the proxy before it, and what it trained."""

    def __init__(self, agent: Running, proxy: Proxy, number: int) -> None:
        self.agent, self.proxy = agent, proxy
        self.value = UNIT * 2**number
        self.trained: Counter[int] = Counter()
        agent.session.train = self.train  # type: ignore[method-assign]

    def train(self, work: Any, mechanism: Any) -> Any:
        self.trained[work.round] += 1
        return filled(self.value, work.round, work.lora), None


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is lost without a word is given up after seconds."""
    monkeypatch.setattr(link, "CALL_S", 5.0)
    monkeypatch.setattr(link, "STREAM_S", 8.0)
    monkeypatch.setitem(link.Link.stream.__kwdefaults__, "timeout_s", 8.0)


def play(folder: Path, rounds: int) -> None:
    with ExitStack() as stack:
        at = stack.enter_context(coordinator(folder / "fleet", wait_ms=5000))
        parties = [party(stack, at, folder, number) for number in range(DEVICES)]
        until(lambda: len(at.service.online()) == DEVICES)
        for number, one in enumerate(parties):
            one.proxy.script = chaos(
                SEED + number,
                rate=0.8,
                kinds=("cut", "cut", "loss", "stall", "delay", "twin"),
                most=1 << 14,
            )
            one.proxy.cut()
        start_run(
            at,
            plan=make_plan(rounds=rounds),
            cohort=COHORT,
            extra=DEVICES - COHORT,
            timeout_ms=60_000,
        )
        stack.enter_context(fleets.driving(at.fleet, at.bell, folder / "fleet"))
        vanish(at, parties, rounds)
        check(at, parties, rounds)
        happened = Counter(f.kind for one in parties for _, f in one.proxy.happened)
        assert {"cut", "loss", "stall", "delay", "twin"} <= set(happened) or rounds < 20, happened


def party(stack: ExitStack, at: Coordinator, folder: Path, number: int) -> Party:
    """Enrol a device, and let it run behind its proxy."""
    port = int(at.service.fleet_address.rpartition(":")[2])
    proxy = stack.enter_context(Proxy(port))
    reached = SimpleNamespace(
        enroll_address=at.service.enroll_address, fleet_address=f"127.0.0.1:{proxy.port}"
    )
    before = SimpleNamespace(service=reached, token=at.token)
    agent = stack.enter_context(running(folder / f"device-{number}", before))  # type: ignore[arg-type]
    return Party(agent, proxy, number)


def vanish(at: Coordinator, parties: list[Party], rounds: int) -> None:
    """Until the run is done: in each round some are gone from its beginning to its end."""
    last = 0

    def turn() -> bool:
        nonlocal last
        newest = rows_of(at.fleet, Round, run_id=RUN, order="-round", limit=1)
        if newest and newest[0].round != last:
            last = newest[0].round
            gone = random.Random(f"{SEED}/{last}").sample(parties, GONE)
            for one in parties:
                one.proxy.unplug() if one in gone else one.proxy.plug()
        return done(at)

    try:
        until(turn, timeout_s=60.0 + 60.0 * rounds)
    finally:
        for one in parties:
            one.proxy.plug()


def check(at: Coordinator, parties: list[Party], rounds: int) -> None:
    """Who was acknowledged is in the adapter, once; and charged for it, and trained, once."""
    names = {one.agent.device_id: number for number, one in enumerate(parties)}
    before = initial()
    for row in rows_of(at.fleet, Round, run_id=RUN, order="round"):
        accepted = {
            names[a.device_id] for a in rows_of(at.fleet, Accepted, run_id=RUN, round=row.round)
        }
        data = at.fleet.artefacts.read(row.adapter_after)
        after = {**initial(), **decode_adapter(data, Artefact.of(data))}
        name = next(n for n in MANIFEST.names if not adapters.is_lora_a(n))
        moved = float((after[name] - before[name]).flat[0])
        assert len(accepted) >= COHORT
        assert moved * len(accepted) == pytest.approx(UNIT * sum(2**i for i in accepted), rel=1e-3)
        for number in accepted:
            assert parties[number].trained[row.round] == 1
            assert charges(parties[number].agent.folder)[row.round] == "released"
        before = after
    run = get(at.fleet, Run, RUN)
    assert (run.rounds_done, run.state) == (rounds, "done")
    for one in parties:
        home = one.agent.folder
        assert set(one.trained.values()) <= {1}
        assert set(one.trained) <= set(charges(home))
        if one.trained:
            assert verify_ledger(home / LEDGER, artefacts=home / "state/updates").ok


def test_a_run_through_a_broken_network_adds_up(tmp_path: Path) -> None:
    play(tmp_path, rounds=3)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_rounds_in_each_of_which_devices_vanish(tmp_path: Path) -> None:
    play(tmp_path, rounds=20)
