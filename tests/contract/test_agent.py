"""The agent before the real service over TLS: when all goes well, and when it does not."""

from __future__ import annotations

import random
import shutil
import threading
import time
from dataclasses import replace

import pytest
from support.agents import advance_until, charges, coordinator, done, quick, running, start
from support.devices import until
from support.federation import POLICY, TRAIN, open_plan
from support.fleets import RUN, rows_of
from support.journal import Journal
from support.members import DAY
from support.proxy import Fault, Proxy, chaos

from sordino.client.agent import link, loop
from sordino.client.agent.journal import OUTBOX, TASK
from sordino.client.agent.membership import join_fleet, leave_fleet
from sordino.client.agent.settings import AgentSettings
from sordino.client.agent.timing import Surroundings
from sordino.client.identity import load_identity
from sordino.core.errors import ContractError, TrustError
from sordino.privacy.plan import policy_limit, verify_ledger
from sordino.privacy.policy import Cap, Policy, Work
from sordino.server import enroll
from sordino.server import fleet_rounds as fr
from sordino.server.store import Accepted, Device, Head, Task


def test_a_run_over_the_wire(tmp_path):
    home = tmp_path / "device"
    with coordinator(tmp_path / "fleet") as at, running(home, at) as device:
        until(at.service.online)
        start(at, rounds=2)
        advance_until(at, lambda: done(at))
        until(lambda: device.steps.count("task:forgotten") == 2)
        assert charges(home) == {1: "released", 2: "released"}
        assert device.session.trained == 2
        assert len(rows_of(at.fleet, Accepted)) == 2
        (row,) = rows_of(at.fleet, Device)
        assert (row.device_id, row.state) == (device.device_id, "active")
        assert len(rows_of(at.fleet, Head)) >= 2
    assert not (home / TASK).exists()
    assert list((home / OUTBOX).iterdir()) == []
    assert verify_ledger(home / "state/ledger.db", artefacts=home / "state/updates").ok


def refused(at, number=1):
    """The word with which the device declined its task."""
    (task,) = rows_of(at.fleet, Task, round=number)
    return task.reason if task.state == "declined" else ""


def join(at, home, **changes):
    """A device that has enrolled and greeted once."""
    with running(home, at, **changes) as device:
        until(lambda: "hello:answered" in device.steps)
    return device


# --- the owner's word --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "word"),
    [
        (Policy(trust=("central",)), "policy-trust"),
        (replace(POLICY, min_noise_multiplier=2.0), "policy-noise"),
        (replace(POLICY, base_models=("cd" * 32,)), "policy-base"),
    ],
)
def test_what_the_policy_forbids_is_declined_before_it_is_taken(tmp_path, policy, word):
    home = tmp_path / "device"
    with coordinator(tmp_path / "fleet") as at, running(home, at, policy=policy) as device:
        until(at.service.online)
        start(at)
        assert until(lambda: refused(at)) == word
        assert "task:noted" not in device.steps
        assert device.session.trained == 0
    assert charges(home) == {}


def test_what_the_ledger_refuses_is_declined_after_it_was_taken(tmp_path):
    home = tmp_path / "device"
    spent = policy_limit(replace(POLICY, caps=(Cap(epsilon=1e-3, delta=1e-5),)))
    with coordinator(tmp_path / "fleet") as at, running(home, at, limit=spent) as device:
        until(at.service.online)
        start(at)
        assert until(lambda: refused(at)) == "policy-budget"
        assert "task:taken" in device.steps
    assert charges(home) == {}


@pytest.mark.parametrize("allowed", [False, True])
def test_a_plan_without_privacy_needs_the_owners_word(tmp_path, allowed):
    home = tmp_path / "device"
    with (
        coordinator(tmp_path / "fleet") as at,
        running(home, at, allow_no_privacy=allowed) as device,
    ):
        until(at.service.online)
        start(at, plan=open_plan(rounds=1), rounds=1)
        if allowed:
            advance_until(at, lambda: done(at))
        else:
            assert until(lambda: refused(at)) == "plan-refused"
        assert device.session.trained == allowed
    assert charges(home) == {}


def test_a_device_with_a_seed_takes_nothing_private(tmp_path):
    with coordinator(tmp_path / "fleet") as at, running(tmp_path / "a", at, seeded=True):
        until(at.service.online)
        start(at)
        assert until(lambda: refused(at)) == "plan-refused"
    assert charges(tmp_path / "a") == {}


def test_an_agent_asks_for_work_only_when_its_owner_lets_it(tmp_path):
    now = {"charging": False}
    with (
        coordinator(tmp_path / "fleet", heartbeat_ms=50) as at,
        running(tmp_path / "a", at, work=Work(charging=True), conditions=lambda: now) as device,
    ):
        until(lambda: "hello:answered" in device.steps)
        start(at, rounds=1)
        until(lambda: device.agent.heart.beats > 2)
        assert at.service.online() == frozenset()
        assert "task:pulled" not in device.steps
        now["charging"] = True
        advance_until(at, lambda: done(at))


# --- files -------------------------------------------------------------------------------------


def test_another_base_is_fetched_once_if_the_owner_lets_it(tmp_path):
    home, base = tmp_path / "device", bytes(range(256)) * 400
    with coordinator(tmp_path / "fleet", chunk_bytes=1000) as at:
        with running(home, at, agent=AgentSettings(fetch_base=True)) as device:
            until(at.service.online)
            start(at, base=base, rounds=2)
            advance_until(at, lambda: done(at))
            assert device.steps.count("chunk:fetched") >= 103
            assert device.steps.count("chunk:fetched") < 206
        (kept,) = (home / "artefacts").glob("*.gguf")
        assert kept.read_bytes() == base
    assert charges(home) == {1: "released", 2: "released"}


def test_another_base_is_declined_otherwise(tmp_path):
    with coordinator(tmp_path / "fleet") as at, running(tmp_path / "device", at):
        until(at.service.online)
        start(at, base=b"GGUF of somebody")
        assert until(lambda: refused(at)) == "model-mismatch"


def test_a_base_that_does_not_fit_is_declined(tmp_path):
    agent = AgentSettings(fetch_base=True, storage_mb=1)
    with coordinator(tmp_path / "fleet") as at, running(tmp_path / "device", at, agent=agent):
        until(at.service.online)
        start(at, base=bytes(1_100_000))
        assert until(lambda: refused(at)) == "unavailable"


# --- breaks ------------------------------------------------------------------------------------


def test_a_coordinator_that_goes_and_comes_back(tmp_path):
    """Stopped while an answer is on its way; the rest of it goes to the next one."""
    home, folder = tmp_path / "device", tmp_path / "fleet"
    sent, gone = [], threading.Event()

    def hook(step):
        sent.append(step)
        if step == "chunk:sent" and sent.count(step) == 3:
            gone.wait(60)

    with coordinator(folder, chunk_bytes=100) as first:
        address = {"fleet_address": first.service.fleet_address}
        address["enroll_address"] = first.service.enroll_address
        made = running(home, first, hook=hook)
        device = made.__enter__()
        until(first.service.online)
        start(first, rounds=2)
        until(lambda: sent.count("chunk:sent") == 3)
    gone.set()
    with coordinator(folder, chunk_bytes=100, **address) as second:
        advance_until(second, lambda: done(second))
        made.__exit__(None, None, None)
        assert len(rows_of(second.fleet, Accepted)) == 2
    assert charges(home) == {1: "released", 2: "released"}
    assert device.session.trained == 2


def test_an_answer_that_comes_too_late_is_let_go_politely(tmp_path):
    home = tmp_path / "device"
    with coordinator(tmp_path / "fleet") as at:
        held = threading.Event()

        def hook(step):
            if step == "answer:kept" and not held.is_set():
                at.clock.by_ms += 120_000  # past the deadline
                at.advance()
                held.set()

        with running(home, at, hook=hook) as device:
            until(at.service.online)
            start(at, rounds=2, patience=9)
            until(lambda: device.steps.count("task:forgotten") == 1)
            advance_until(at, lambda: len(rows_of(at.fleet, Accepted)) == 1)
    assert charges(home) == {1: "released", 2: "released"}
    assert not (home / TASK).exists()


def test_a_task_that_is_over_before_it_is_begun_is_charged_to_nobody(tmp_path):
    home = tmp_path / "device"
    with coordinator(tmp_path / "fleet", heartbeat_ms=50) as at:

        def hook(step):
            if step == "task:taken":
                fr.stop_run(at.fleet, "stop", RUN)
                until(lambda: device.agent.desk.cancelled)

        with running(home, at, hook=hook) as device:
            until(at.service.online)
            start(at)
            until(lambda: "task:taken" in device.steps)
            until(lambda: not (home / TASK).exists())
            assert device.session.trained == 0
    assert charges(home) == {}


# --- clocks and certificates -------------------------------------------------------------------


@pytest.mark.parametrize("minutes", [-25, 25])
def test_a_wrong_clock_is_corrected_by_the_coordinators(tmp_path, minutes):
    around = quick()
    moved = Surroundings(
        stop=around.stop,
        sleep=around.sleep,
        wall_ms=lambda: time.time_ns() // 1_000_000 + minutes * 60_000,
    )
    with (
        coordinator(tmp_path / "fleet") as at,
        running(tmp_path / "device", at, around=moved) as device,
    ):
        until(at.service.online)
        assert abs(device.agent.desk.link.clock.now_ms() - at.clock()) < 60_000
        start(at, rounds=1)
        advance_until(at, lambda: done(at))


def test_a_certificate_is_renewed_while_the_agent_runs(tmp_path):
    home = tmp_path / "device"
    with coordinator(tmp_path / "fleet") as at:
        at.clock.by_ms = -21 * DAY  # of a certificate's 30
        around = replace(quick(), wall_ms=at.clock)
        join_fleet(home, at.service.enroll_address, at.token(), around)
        before = load_identity(home, now_unix_ms=at.clock())
        at.clock.by_ms = 0
        with running(home, at) as device:
            until(lambda: "certificate:renewed" in device.steps)
            start(at, rounds=1)
            advance_until(at, lambda: done(at))
            now = device.agent.desk.link.identity
        assert device.steps.count("certificate:renewed") == 1
        assert now.device_id == before.device_id
        assert now.not_after_unix_ms > before.not_after_unix_ms + 20 * DAY
        kept = load_identity(home, now_unix_ms=at.clock())
        assert kept.certificates == now.certificates
        assert len(fr.Members(at.fleet).certificates_of_device(now.device_id)) == 2


def stopped(at, home, then=lambda device: None):
    """What an agent ends with by itself, once something was done to it."""
    made = running(home, at)
    device = made.__enter__()
    then(device)
    until(lambda: device.errors)
    with pytest.raises(TrustError) as caught:
        made.__exit__(None, None, None)
    return str(caught.value)


def test_a_revoked_device_stops(tmp_path):
    home = tmp_path / "device"

    def revoke(device):
        until(at.service.online)
        members = fr.Members(at.fleet)
        enroll.revoke(members, device.device_id, now_unix_ms=at.clock(), because="stolen")

    with coordinator(tmp_path / "fleet") as at:
        assert "certificate-revoked" in stopped(at, home, revoke)
        assert "lets this device in no more" in stopped(at, home)


def test_a_device_whose_ledger_was_rolled_back_stops(tmp_path):
    home = tmp_path / "device"
    with coordinator(tmp_path / "fleet") as at:
        with running(home, at) as device:
            until(at.service.online)
            start(at, rounds=3)
            advance_until(at, lambda: device.steps.count("task:forgotten") == 1)
            saved = tmp_path / "saved"
            shutil.copytree(home / "state", saved)
            advance_until(at, lambda: device.steps.count("task:forgotten") == 3)
        shutil.rmtree(home / "state")
        shutil.copytree(saved, home / "state")
        assert "ledger-rolled-back" in stopped(at, home)
        (row,) = rows_of(at.fleet, Device)
        assert row.state == "suspect"
        shutil.rmtree(home / "state")
        assert "ledger-rolled-back" in stopped(at, home)


# --- ways in and out ---------------------------------------------------------------------------


def test_later_starts_need_no_token_and_no_address(tmp_path):
    home = tmp_path / "device"
    with coordinator(tmp_path / "fleet") as at:
        name = join(at, home).device_id
        again = join_fleet(home, "", "", quick())
        assert again.device_id == name
        assert join_fleet(home, "", at.token(), quick()).device_id == name  # not used
        assert sum(1 for one in fr.Members(at.fleet).tokens() if not one.device_id) == 1
        with coordinator(tmp_path / "other") as other:
            with pytest.raises(TrustError, match="another fleet"):
                join_fleet(home, "", other.token(), quick())
            with pytest.raises(ContractError, match="wrong-authority"):
                join_fleet(tmp_path / "new", at.service.enroll_address, other.token(), quick())
        with pytest.raises(TrustError, match="isn't enrolled"):
            join_fleet(tmp_path / "newer", at.service.enroll_address, "", quick())


def test_a_token_is_good_once(tmp_path):
    with coordinator(tmp_path / "fleet") as at:
        token = at.token()
        assert join(at, tmp_path / "a", token=token)
        with pytest.raises(TrustError, match="token-used"):
            join(at, tmp_path / "b", token=token)


def test_nobody_answers(tmp_path):
    with coordinator(tmp_path / "fleet") as at:
        token, address = at.token(), at.service.enroll_address
    waits = []
    around = replace(quick(), sleep=lambda seconds: waits.append(seconds) or False)
    with pytest.raises(TrustError, match="no TLS"):
        join_fleet(tmp_path / "a", address, token, around)
    assert len(waits) == 5
    assert waits == sorted(waits)


def test_leaving_is_for_good_and_the_ledger_stays(tmp_path):
    home = tmp_path / "device"

    def leave(device):
        until(at.service.online)
        start(at, rounds=1)
        advance_until(at, lambda: done(at))
        assert leave_fleet(home, quick()) == device.device_id

    with coordinator(tmp_path / "fleet") as at:
        assert "certificate-revoked" in stopped(at, home, leave)
        (row,) = rows_of(at.fleet, Device)
        assert row.state == "left"
        assert charges(home) == {1: "released"}
        assert not (home / "identity.json").exists()
        with pytest.raises(TrustError, match="sordino join makes it"):
            leave_fleet(home, quick())
        # With a new token it is another device, which has spent what it spent.
        with running(home, at) as device:
            until(at.service.online)
            assert device.device_id != row.device_id


# --- a network that breaks ---------------------------------------------------------------------


def through(at, script):
    """A proxy in front of the members' listener."""
    return Proxy(int(at.service.fleet_address.rpartition(":")[2]), script)


def test_connections_that_are_cut_at_any_byte(tmp_path):
    """Within handshakes, greetings, a base on its way down and answers on their way up."""
    home, base = tmp_path / "device", bytes(range(256)) * 400

    def script(number):
        way = "down" if number % 3 else "up"
        return [Fault("cut", way, after=500 + 700 * number)] if number < 24 else ()

    with (
        coordinator(tmp_path / "fleet", chunk_bytes=1000) as at,
        through(at, script) as proxy,
        running(home, at, port=proxy.port, agent=AgentSettings(fetch_base=True)) as device,
    ):
        until(at.service.online, 120)
        start(at, base=base, rounds=2)
        advance_until(at, lambda: done(at))
        until(lambda: device.steps.count("task:forgotten") == 2)
        assert sum(one.happened != [] for one in proxy.links) > 5
    assert len(Journal(home / "draws").lines("draw")) == 2 * TRAIN.local_steps
    assert charges(home) == {1: "released", 2: "released"}


@pytest.mark.slow
@pytest.mark.parametrize("turn", range(3))
def test_a_network_that_loses_stalls_and_repeats(tmp_path, monkeypatch, turn):
    seed = random.randrange(2**32)
    print("seed", seed, "turn", turn)
    monkeypatch.setattr(link, "CALL_S", 3.0)
    monkeypatch.setattr(loop, "CALL_S", 3.0)
    home, kinds = tmp_path / "device", ("cut", "loss", "stall", "delay", "twin")
    with (
        coordinator(tmp_path / "fleet", chunk_bytes=200, wait_ms=2000, heartbeat_ms=300) as at,
        through(at, chaos(seed, rate=0.6, kinds=kinds, most=1 << 15)) as proxy,
        running(home, at, port=proxy.port) as device,
    ):
        until(at.service.online, 300)
        start(at, rounds=10, timeout_ms=600_000)
        until(lambda: (at.advance(), done(at))[1], 600)
        assert device.session.trained == 10
    assert charges(home) == dict.fromkeys(range(1, 11), "released")
