"""Ways around the plan, tried with what Python and the public names give: none leads anywhere."""

import ast
import copy
import os
import pickle
import threading
from collections import deque
from pathlib import Path

import numpy as np
import pytest
from support.ledgers import make_plan as thousand_rounds

from sordino.core.errors import LedgerError, PlanError, PolicyRefusedError
from sordino.privacy import accounting
from sordino.privacy.ledger import Charge, Ledger
from sordino.privacy.noise import seeded_source, system_source
from sordino.privacy.plan import (
    NoPrivacyPlan,
    RoundMechanism,
    events_by_client,
    open_round,
    open_round_without_privacy,
    policy_limit,
    spent,
)
from sordino.privacy.policy import Cap, Policy

ROOT = Path(__file__).parents[2]


def make_plan(**changes):
    return thousand_rounds(**{"rounds": 3, **changes})


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger.db", "client-1")


@pytest.fixture
def mechanism(ledger):
    plan = make_plan()
    return open_round(plan, ledger.charge(plan, 1, "data"), seeded_source(0))


def test_a_charge_is_good_once(ledger):
    plan = make_plan()
    charge = ledger.charge(plan, 1, "data")
    open_round(plan, charge, system_source())
    with pytest.raises(PlanError, match="opened before"):
        open_round(plan, charge, system_source())


@pytest.mark.parametrize(
    "change",
    [
        {"noise_multiplier": 0.1},
        {"clip_norm": 100.0},
        {"steps_per_round": 200},
        {"sampling_rate": 1.0},
        {"run_id": "run-2"},
        {"divisor": 1.0},
    ],
)
def test_a_charge_is_for_exactly_its_plan(ledger, change):
    charge = ledger.charge(make_plan(), 1, "data")
    with pytest.raises(PlanError, match="another plan"):
        open_round(make_plan(**change), charge, system_source())
    open_round(make_plan(), charge, system_source())  # the refusal didn't use it up


def test_a_plan_cannot_charge_less_than_it_does(ledger):
    class Cheap:
        run_id, rounds, unit, neighbouring = "run-1", 3, "record", "add-or-remove-one"
        sha256 = make_plan().sha256

        def event_fields(self):
            return {**make_plan().event_fields(), "noise_multiplier": 100.0}

    with pytest.raises(PlanError, match="another plan"):
        open_round(make_plan(), ledger.charge(Cheap(), 1, "data"), system_source())


def test_nothing_opens_without_the_ledger(ledger):
    plan = make_plan()
    entry = ledger.charge(plan, 1, "data").entry
    with pytest.raises(LedgerError, match=r"Ledger\.charge"):
        Charge(entry, entry)
    for fake in (entry, None, object()):
        with pytest.raises(PlanError, match="charge"):
            open_round(plan, fake, system_source())
    with pytest.raises(PlanError, match="open_round"):
        RoundMechanism(plan, system_source())


def test_neither_charge_nor_round_can_be_copied(ledger, mechanism):
    charge = ledger.charge(make_plan(), 2, "data")
    for copier in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(LedgerError, match="copied"):
            copier(charge)
        with pytest.raises(PlanError, match="copied"):
            copier(mechanism)


def test_a_fork_can_use_neither(ledger, mechanism):
    plan = make_plan()
    charge = ledger.charge(plan, 2, "data")
    child = os.fork()
    if child == 0:
        refused = 0
        for attempt in (
            lambda: open_round(plan, charge, system_source()),
            lambda: mechanism.sample(3),
        ):
            try:
                attempt()
            except PlanError:
                refused += 1
        os._exit(refused)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
    open_round(plan, charge, system_source())


def test_another_thread_can_not_go_on(mechanism):
    mechanism.sample(3)
    refused = []

    def attempt(call):
        try:
            call()
        except PlanError as error:
            refused.append(str(error))

    for call in (lambda: mechanism.release(np.zeros(4)), lambda: mechanism.sample(3)):
        thread = threading.Thread(target=attempt, args=(call,))
        thread.start()
        thread.join()
    assert len(refused) == 2
    assert all("another thread" in text for text in refused)


def test_plans_with_and_without_privacy_are_not_exchanged(ledger):
    charge = ledger.charge(make_plan(), 1, "data")
    twin = NoPrivacyPlan(
        run_id="run-1", rounds=3, steps_per_round=2, sampling_rate=0.5, divisor=4.0
    )
    with pytest.raises(PlanError, match="NoPrivacyPlan"):
        open_round(twin, charge, system_source())
    with pytest.raises(PlanError, match="NoPrivacyPlan"):
        open_round_without_privacy(make_plan(), system_source())


def test_an_unfinished_round_stays_charged(ledger, mechanism, tmp_path):
    mechanism.clip_factors(np.ones(len(mechanism.sample(10))))
    mechanism.release(np.zeros(8))
    del mechanism
    with pytest.raises(LedgerError, match="already charged"):
        ledger.charge(make_plan(), 1, "data")
    one_round = accounting.epsilon_pld([make_plan().round_event()], 1e-5)
    assert spent(ledger.path, 1e-5) == {"client-1": one_round}


def test_events_are_read_back_by_client_and_run(ledger):
    plan, other = make_plan(), make_plan(run_id="run-2", noise_multiplier=9.0)
    ledger.charge(plan, 1, "data")
    ledger.charge(plan, 2, "data")
    ledger.charge(other, 1, "data")
    assert events_by_client(ledger.path, "run-2") == {"client-1": (other.round_event(),)}
    assert len(events_by_client(ledger.path)["client-1"]) == 3
    assert spent(ledger.path, 1e-5, "run-1")["client-1"] < spent(ledger.path, 1e-5)["client-1"]


def test_an_event_of_another_unit_is_not_accounted_as_records(ledger):
    plan = make_plan()

    class User:
        run_id, rounds, unit, neighbouring = "run-1", 3, "user", plan.neighbouring
        sha256, event_fields = plan.sha256, plan.event_fields

    ledger.charge(User(), 1, "data")
    with pytest.raises(PlanError, match="unit"):
        spent(ledger.path, 1e-5)


def test_a_charge_that_is_shown_cannot_be_edited(ledger):
    """Whoever could make an entry look cheaper in memory would get past the cap of that process."""
    once = policy_limit(Policy(max_sampling_rate=0.5, caps=(Cap(epsilon=4.0, delta=1e-5),)))
    plan = make_plan()
    charge = ledger.charge(plan, 1, "data", limit=once)
    for shown in (charge.entry, ledger.standings[0].reserve, ledger.find("run-1", 1).reserve):
        with pytest.raises(TypeError):
            shown.event["noise_multiplier"] = 1e6
        with pytest.raises(AttributeError):
            shown.round = 9
    mine = plan.event_fields()
    ledger.charge(plan, 2, "data")
    mine["steps"] = 0
    assert [dict(s.reserve.event) for s in ledger.standings] == [plan.event_fields()] * 2
    longer = make_plan(rounds=1000, run_id="run-2")
    with pytest.raises(PolicyRefusedError):
        deque(ledger.charge(longer, number, "data", limit=once) for number in range(1, 1001))


def test_a_source_that_says_it_is_the_systems_gives_no_charge_back(ledger):
    """A broken source fails its step, and the step stays charged and can't be drawn again."""

    class Broken:
        label, private = system_source().label, True

        def coins(self, size):
            return np.zeros(size, np.uint64)

        def rounded_gaussian(self, size, scale):
            raise OSError("no entropy")

    plan = make_plan()
    opened = open_round(plan, ledger.charge(plan, 1, "data"), Broken())
    opened.clip_factors(np.ones(len(opened.sample(3))))
    with pytest.raises(OSError, match="entropy"):
        opened.release(np.zeros(4))
    with pytest.raises(PlanError, match="no step is open"):
        opened.release(np.zeros(4))
    assert len(ledger.standings) == 1


DRAWING = {"release_on_grid", "poisson_sample", "rounded_gaussian", "RoundedGaussian", "Keystream"}


def drawing(source):
    """Names of what samples or draws, as some code uses them."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.ImportFrom):
            found |= {name.name for name in node.names}
    return found & DRAWING


def test_only_the_plan_samples_and_draws():
    """No other shipped module reaches for a sampler, a generator or the grid's release."""
    inside = ("privacy/sordino/privacy/plan", "privacy/sordino/privacy/noise")
    users = {
        str(path.relative_to(ROOT))
        for folder in ("core", "privacy", "client", "server", "sim", "cli")
        for path in (ROOT / folder).rglob("*.py")
        if drawing(path.read_text(encoding="utf-8"))
    }
    assert users
    # The benchmark's source hands the system's noise on, and nothing but the benchmark imports it.
    timed = "client/sordino/client/bench/ours.py"
    # The self-test's faults are wrong on purpose, and nothing but the self-test imports them.
    broken = "sim/sordino/sim/audit/broken.py"
    assert {user for user in users if not user.startswith(inside)} == {timed, broken}
    assert [
        path.name
        for folder in ("core", "privacy", "client", "server", "sim", "cli")
        for path in (ROOT / folder).rglob("*.py")
        if "audit.broken" in path.read_text(encoding="utf-8")
    ] == ["selftest.py"]
    assert not [
        str(path)
        for folder in ("core", "privacy", "client", "server", "sim", "cli")
        for path in (ROOT / folder).rglob("*.py")
        if "bench" not in path.as_posix() and "bench.ours" in path.read_text(encoding="utf-8")
    ]
    assert drawing("from sordino.privacy.noise import release_on_grid") == {"release_on_grid"}
    assert drawing("noise.release_on_grid(total)") == {"release_on_grid"}
