"""A simulated owner's policy: signed, and good for the run's own plan alone."""

from dataclasses import replace
from pathlib import Path

import pytest

from sordino.core.config import MetricsConfig, PrivacyConfig
from sordino.core.errors import PolicyRefusedError
from sordino.privacy.plan import (
    central_plan,
    filter_of,
    first_refused_round,
    metric_plan,
    plan_without_privacy,
    private_plan,
    request_of,
)
from sordino.privacy.policy import check_request, load_policy
from sordino.sim.folder import RunFolder
from sordino.sim.policies import policy_for, simulated_policy

PLAN = private_plan(PrivacyConfig(noise_multiplier=0.8), run_id="r", rounds=3, local_steps=10)


def test_it_allows_the_plan_and_nothing_beyond(tmp_path):
    run = RunFolder(tmp_path, "r")
    (tmp_path / "state").mkdir()
    keys = simulated_policy(PLAN, run)
    assert simulated_policy(PLAN, run) == keys  # a resumed run finds what it had
    policy = load_policy(Path(keys["policy"]), keys["policy-key"])
    check_request(policy, request_of(PLAN, base_sha256="ab" * 32, rank=8))
    assert first_refused_round(policy, PLAN) is None
    for change in (
        {"noise_multiplier": 0.79},
        {"sampling_rate": 0.11},
        {"clip_norm": 1.1},
        {"steps_per_round": 11},
        {"rounds": 4},
        {"delta": 2e-5},
    ):
        with pytest.raises(PolicyRefusedError):
            check_request(policy, request_of(replace(PLAN, **change)))
    assert not list((tmp_path / "state").glob("*.key"))  # the key was thrown away


def test_it_allows_the_metric_beside_the_plan_and_no_other(tmp_path):
    bought = metric_plan(
        MetricsConfig(metric="loss", noise_multiplier=9.0), PrivacyConfig(), run_id="r", rounds=3
    )
    run = RunFolder(tmp_path, "r")
    (tmp_path / "state").mkdir()
    keys = simulated_policy(PLAN, run, bought)
    policy = load_policy(Path(keys["policy"]), keys["policy-key"])
    (cap,) = policy.caps
    both = [PLAN.round_event()] * 3 + [bought.round_event()] * 3
    assert 0 <= cap.epsilon - filter_of(cap).spent(both) < 0.011
    check_request(policy, request_of(bought))
    for other in (replace(bought, noise_multiplier=8.9), replace(bought, metric="accuracy")):
        with pytest.raises(PolicyRefusedError):
            check_request(policy, request_of(other))
    with pytest.raises(PolicyRefusedError):
        check_request(policy_for(PLAN), request_of(bought))


@pytest.mark.parametrize("rate", [1.0, 0.25])
def test_it_allows_a_central_plan_and_nothing_beyond(tmp_path, rate):
    config = PrivacyConfig(trust="central", noise_multiplier=3.0)
    plan = central_plan(config, run_id="r", rounds=2, local_steps=4, population=40, user_rate=rate)
    run = RunFolder(tmp_path, "r")
    (tmp_path / "state").mkdir()
    keys = simulated_policy(plan, run)
    policy = load_policy(Path(keys["policy"]), keys["policy-key"])
    check_request(policy, request_of(plan))
    assert first_refused_round(policy, plan) is None
    assert policy.amplification == (rate < 1)
    assert [cap.unit for cap in policy.caps] == ["user"]
    more = replace(plan, population=80, cohort=round(80 * rate))
    smaller = replace(plan, population=20, cohort=round(20 * rate))
    for other in (more, smaller, replace(plan, noise_multiplier=2.9), PLAN):
        with pytest.raises(PolicyRefusedError):
            check_request(policy, request_of(other))


def test_without_privacy_there_is_nothing_to_allow(tmp_path):
    config = PrivacyConfig(trust="none")
    plan = plan_without_privacy(config, run_id="r", rounds=1, local_steps=1)
    assert simulated_policy(plan, RunFolder(tmp_path, "r")) == {}
