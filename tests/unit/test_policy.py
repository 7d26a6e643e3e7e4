"""A device's policy: read strictly, believed only with its owner's signature, never loosened."""

import math
from dataclasses import replace

import pytest

from sordino.core.errors import LedgerError, PolicyError, PolicyRefusedError
from sordino.privacy.ledger import Ledger
from sordino.privacy.plan import (
    CentralPlan,
    MetricPlan,
    Plan,
    first_refused_round,
    forecasts,
    policy_limit,
    request_of,
)
from sordino.privacy.policy import (
    BUILT_IN,
    REASONS,
    Cap,
    Policy,
    Work,
    check_request,
    load_policy,
    make_owner_key,
    parse_policy,
    policy_toml,
    read_unsigned,
    sign_policy,
)

BASE = "ab" * 32


def make_plan(**changes):
    values = {
        "run_id": "run-1",
        "rounds": 3,
        "steps_per_round": 2,
        "sampling_rate": 0.1,
        "noise_multiplier": 1.5,
        "clip_norm": 2.0,
        "divisor": 4.0,
        "delta": 1e-5,
    }
    return Plan(**{**values, **changes})


def make_central(**changes):
    values = {
        "run_id": "run-1",
        "rounds": 3,
        "steps_per_round": 2,
        "noise_multiplier": 20.0,
        "clip_norm": 1.0,
        "delta": 1e-5,
        "population": 50,
        "cohort": 50,
        "sampling": "none",
        "sampling_rate": 1.0,
        "batch_rate": 0.1,
        "batch_divisor": 4.0,
    }
    return CentralPlan(**{**values, **changes})


def ask(**changes):
    request = request_of(make_plan(), base_sha256=BASE, rank=8, targets=("attention",))
    return replace(request, **changes)


def test_the_builtin_policy_is_strict():
    assert BUILT_IN.trust == ("local",)
    assert not BUILT_IN.metrics
    assert not BUILT_IN.amplification
    assert all(not cap.period_days for cap in BUILT_IN.caps)
    assert max(cap.delta for cap in BUILT_IN.caps) <= 1e-5
    check_request(BUILT_IN, ask())
    # It allows the plan that a run has by default, once.
    default = make_plan(rounds=3, steps_per_round=10, noise_multiplier=0.7293, clip_norm=1.0)
    assert first_refused_round(BUILT_IN, default) is None
    assert first_refused_round(BUILT_IN, replace(default, rounds=6)) == 5


def test_toml_and_back():
    policy = Policy(
        serial=7,
        trust=("local", "central"),
        base_models=(BASE,),
        metrics=("loss",),
        caps=(
            Cap(epsilon=4.0, delta=1e-6, dataset='notes "2026"', orders=(3, 9)),
            Cap(epsilon=9.0, delta=1e-6, unit="user", records_per_user=5),
            Cap(epsilon=1.0, delta=1e-6, period_days=7),
        ),
        work=Work(charging=True),
    )
    assert parse_policy(policy_toml(policy).encode()) == policy
    assert parse_policy(policy_toml(replace(policy, caps=())).encode()).caps == ()
    head = b'kind = "sordino.policy"\nversion = 1\n'
    assert parse_policy(head) == BUILT_IN
    assert policy.sha256 != BUILT_IN.sha256 == Policy().sha256


@pytest.mark.parametrize(
    "text",
    [
        "",
        "version = 1",
        'kind = "sordino.policy"\nversion = 2',
        'kind = "sordino.policy"\nversion = true',
        'kind = "sordino.policy"\nversion = 1\nmin_nois_multiplier = 1.0',
        'kind = "sordino.policy"\nversion = 1\nmin_noise_multiplier = 0.0',
        'kind = "sordino.policy"\nversion = 1\nmin_noise_multiplier = nan',
        'kind = "sordino.policy"\nversion = 1\nmax_clip_norm = inf',
        'kind = "sordino.policy"\nversion = 1\nmax_sampling_rate = 1.5',
        'kind = "sordino.policy"\nversion = 1\nmax_delta = 1.0',
        'kind = "sordino.policy"\nversion = 1\ntrust = ["none"]',
        'kind = "sordino.policy"\nversion = 1\nbase_models = ["ABCD"]',
        'kind = "sordino.policy"\nversion = 1\nmin_cohort = 0',
        'kind = "sordino.policy"\nversion = 1\n[[caps]]\nepsilon = 1.0',
        'kind = "sordino.policy"\nversion = 1\n[[caps]]\nepsilon = -1.0\ndelta = 1e-5',
        'kind = "sordino.policy"\nversion = 1\n[[caps]]\nepsilon = 1.0\ndelta = 1e-5\n'
        'unit = "user"\ndataset = "x"',
        "kind = [",
        "\x00",
    ],
)
def test_an_impossible_policy_is_refused(text):
    with pytest.raises(PolicyError):
        parse_policy(text.encode())


# --- the signature -----------------------------------------------------------------------------


@pytest.fixture
def signed(tmp_path):
    path, key = tmp_path / "policy.toml", tmp_path / "owner.key"
    path.write_text(policy_toml(Policy(serial=1)))
    make_owner_key(key)
    return path, key, sign_policy(path, key)


def test_only_the_owners_policy_is_obeyed(signed, tmp_path):
    path, key, public = signed
    assert load_policy(path, public).serial == 1
    assert oct(key.stat().st_mode)[-3:] == "600"
    other = make_owner_key(tmp_path / "other.key")
    with pytest.raises(PolicyError, match="not signed by"):
        load_policy(path, other)


def test_every_changed_byte_is_noticed(signed):
    path, _, public = signed
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(PolicyError, match="not signed"):
            load_policy(path, public)
    path.write_bytes(whole + b"\n")
    with pytest.raises(PolicyError, match="not signed"):
        load_policy(path, public)


def test_there_is_no_falling_back(signed):
    path, key, public = signed
    signature = path.with_name("policy.toml.sig")
    kept = signature.read_bytes()
    for bad in (b"", b"00" * 64, kept[:-3], b"\xff\xfe", kept.upper()):
        signature.write_bytes(bad)
        with pytest.raises(PolicyError):
            load_policy(path, public)
    signature.unlink()
    with pytest.raises(PolicyError, match="can't read"):
        load_policy(path, public)
    for bad_key in ("", "xyz", public.upper(), public[:-1]):
        with pytest.raises(PolicyError):
            load_policy(path, bad_key)
    key.chmod(0o644)
    with pytest.raises(PolicyError, match="read by others"):
        sign_policy(path, key)
    path.write_text("nonsense")
    with pytest.raises(PolicyError):
        read_unsigned(path)


def test_a_bad_policy_is_not_signed(signed, tmp_path):
    bad = tmp_path / "bad.toml"
    bad.write_text('kind = "sordino.policy"\nversion = 1\nmax_clip_norm = inf')
    with pytest.raises(PolicyError):
        sign_policy(bad, signed[1])
    with pytest.raises(PolicyError, match="can't write"):
        make_owner_key(signed[1])


# --- requests ----------------------------------------------------------------------------------


def refused(policy, request, conditions=dict):
    with pytest.raises(PolicyRefusedError) as caught:
        check_request(policy, request, conditions)
    assert caught.value.reason in REASONS
    return caught.value.reason


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"trust": "central"}, "policy-trust"),
        ({"trust": "none"}, "policy-trust"),
        ({"noise_multiplier": 0.0}, "policy-noise"),
        ({"noise_multiplier": -1.0}, "policy-noise"),
        ({"noise_multiplier": math.nan}, "policy-noise"),
        ({"noise_multiplier": math.inf}, "policy-noise"),
        ({"noise_multiplier": 0.49}, "policy-noise"),
        ({"clip_norm": math.inf}, "policy-clip"),
        ({"clip_norm": math.nan}, "policy-clip"),
        ({"clip_norm": 0.0}, "policy-clip"),
        ({"clip_norm": 10.1}, "policy-clip"),
        ({"sampling_rate": 1.0}, "policy-sampling"),
        ({"sampling_rate": math.nan}, "policy-sampling"),
        ({"amplified": True}, "policy-sampling"),
        ({"steps_per_round": 101}, "policy-steps"),
        ({"rounds": 1001}, "policy-rounds"),
        ({"delta": 1.0}, "policy-delta"),
        ({"delta": 2e-5}, "policy-delta"),
        ({"delta": math.nan}, "policy-delta"),
        ({"cohort": 1}, "policy-cohort"),
        ({"cohort": 20, "population": 10_001}, "policy-population"),
        ({"cohort": 20, "population": 19}, "policy-population"),
        ({"rank": 65}, "policy-adapter"),
        ({"targets": ("attention", "lm_head")}, "policy-adapter"),
        ({"metric": "loss"}, "policy-metric"),
    ],
)
def test_every_rule_refuses(change, word):
    assert refused(BUILT_IN, ask(**change)) == word


def test_rules_of_bases_and_metrics():
    policy = Policy(base_models=(BASE,), metrics=("loss",))
    check_request(policy, ask())
    assert refused(policy, ask(base_sha256="cd" * 32)) == "policy-base"
    check_request(policy, ask(metric="loss", noise_multiplier=4.0))
    assert refused(policy, ask(metric="loss", noise_multiplier=3.9)) == "policy-noise"
    assert refused(policy, ask(metric="accuracy", noise_multiplier=4.0)) == "policy-metric"


def test_a_tighter_request_passes():
    check_request(
        BUILT_IN,
        ask(noise_multiplier=1e5, clip_norm=1e-3, sampling_rate=1e-4, delta=1e-9, rank=1, rounds=1),
    )


def test_when_to_work_is_asked_of_the_device_only_if_the_policy_cares():
    def never():
        raise AssertionError

    check_request(BUILT_IN, ask(), never)
    policy = Policy(work=Work(charging=True, idle=True))
    check_request(policy, ask(), lambda: {"charging": True, "idle": True})
    for now in ({}, {"charging": True}, {"charging": True, "idle": False}, {"idle": 1}):
        assert refused(policy, ask(), lambda now=now: now) == "policy-not-now"


def test_a_plan_says_what_it_asks():
    request = request_of(make_central(), base_sha256=BASE, rank=2, targets=("attention",))
    assert (request.cohort, request.population, request.amplified) == (50, 50, False)
    sampled = make_central(sampling="poisson", sampling_rate=0.5, cohort=25)
    assert request_of(sampled).amplified
    metric = MetricPlan(
        run_id="m",
        rounds=1,
        metric="loss",
        purpose="metric",
        noise_multiplier=5.0,
        clip_norm=8.0,
        divisor=10.0,
        delta=1e-5,
    )
    assert request_of(metric).metric == "loss"


# --- caps, inside the ledger's transaction ------------------------------------------------------


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger.db", "client-1")


def charge(ledger, policy, plan, number=1, dataset="data"):
    return ledger.charge(plan, number, dataset, limit=policy_limit(policy))


def until_refused(attempt):
    """How many attempts passed before one was refused for its budget."""
    for number in range(100):
        try:
            attempt(number)
        except PolicyRefusedError as error:
            refusal = error
            break
    assert refusal.reason == "policy-budget"
    return number


def test_a_cap_holds_over_runs_and_is_kept_for_each_dataset(ledger):
    policy = Policy(caps=(Cap(epsilon=3.0, delta=1e-5), Cap(epsilon=1e3, delta=1e-5, dataset="b")))
    plan = make_plan(rounds=100, noise_multiplier=2.0)
    # Another run, and so another plan, each time.
    done = until_refused(lambda n: charge(ledger, policy, replace(plan, run_id=f"run-{n}")))
    assert 1 < done < 100
    (left,) = forecasts(policy, plan, [s.reserve for s in ledger.standings])
    assert left.rounds == 0
    charge(ledger, policy, replace(plan, run_id="fresh"), dataset="other")
    for number in range(1, done + 2):  # a named cap stands in for the one for every dataset
        charge(ledger, policy, replace(plan, run_id="b"), number, dataset="b")
    assert {s.reserve.policy_sha256 for s in ledger.standings} == {policy.sha256}


def test_nothing_is_charged_by_a_refusal(ledger):
    policy = Policy(caps=(Cap(epsilon=0.01, delta=1e-5),))
    with pytest.raises(PolicyRefusedError):
        charge(ledger, policy, make_plan())
    assert ledger.standings == ()


def test_a_unit_without_a_cap_for_life_is_not_trained_for(ledger):
    pace = Policy(caps=(Cap(epsilon=100.0, delta=1e-5, period_days=7),))
    with pytest.raises(PolicyRefusedError, match="no cap for life"):
        charge(ledger, pace, make_plan())
    with pytest.raises(PolicyRefusedError, match="no cap for life"):
        charge(ledger, BUILT_IN, make_central())


def test_a_users_cap_adds_over_datasets_and_both_units(ledger):
    caps = (Cap(epsilon=50.0, delta=1e-5), Cap(epsilon=2.0, delta=1e-5, unit="user"))
    policy = Policy(caps=caps)
    plan = make_central(noise_multiplier=5.0)

    def elsewhere(number):
        charge(ledger, policy, replace(plan, run_id=f"run-{number}"), 1, f"dataset-{number}")

    assert 1 < until_refused(elsewhere) < 100
    # A record's event has no bound for a user whose records aren't counted.
    with pytest.raises(PolicyRefusedError, match="unit user"):
        charge(ledger, policy, make_plan(run_id="another"), 1, "d")


def test_a_stale_round_is_refused(ledger):
    plan = make_plan(rounds=9)
    charge(ledger, BUILT_IN, plan, 4)
    for number in (3, 1):
        with pytest.raises(PolicyRefusedError, match="stale-round"):
            charge(ledger, BUILT_IN, plan, number)
    charge(ledger, BUILT_IN, plan, 5)
    assert len(ledger.standings) == 2


def test_pace_is_over_the_last_days(tmp_path):
    from datetime import UTC, datetime, timedelta

    now = [datetime(2026, 1, 1, tzinfo=UTC)]
    ledger = Ledger(tmp_path / "ledger.db", "c", now=lambda: now[0])
    plan = make_plan(rounds=20)
    once = policy_limit(Policy(caps=(Cap(epsilon=1e3, delta=1e-5),)))
    cap = Cap(epsilon=1.5, delta=1e-5, period_days=7)
    policy = Policy(caps=(Cap(epsilon=1e3, delta=1e-5), cap))
    ledger.charge(plan, 1, "d", limit=once)
    number = 2 + until_refused(lambda n: charge(ledger, policy, plan, 2 + n, "d"))
    now[0] += timedelta(days=8)
    charge(ledger, policy, plan, number, "d")


def test_a_block_counts_as_spent_near_its_cap(ledger):
    plan = make_plan()
    charge(ledger, BUILT_IN, plan, 1)
    charged = [standing.reserve for standing in ledger.standings]
    (now,) = forecasts(BUILT_IN, plan, charged)
    for share, spent in ((1.005, True), (1.2, False)):
        policy = Policy(caps=(Cap(epsilon=now.spent * share, delta=1e-5),))
        assert policy_limit(policy).is_spent(charged, charged[0]) is spent
    tight = Policy(caps=(Cap(epsilon=now.spent * 1.005, delta=1e-5),))
    with pytest.raises(PolicyRefusedError):
        charge(ledger, tight, plan, 2)
    with pytest.raises(LedgerError, match="retired"):  # from here on whatever the policy says
        charge(ledger, BUILT_IN, plan, 3)
