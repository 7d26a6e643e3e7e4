"""What a simulation sees of clip and noise under central trust, and the run's ledgers."""

import numpy as np
import pytest
from support.central import make_central

from sordino.client.charged import UPDATES
from sordino.core.config import ExperimentConfig, FederationConfig, PrivacyConfig
from sordino.core.errors import ConfigError
from sordino.core.kept import KeptUpdates
from sordino.core.wire import Envelope, pack
from sordino.privacy.ledger import Ledger, export_ledgers
from sordino.privacy.plan import CentralPlan, NoPrivacyPlan
from sordino.sim.central import check_population, ledger_of, observe, releases_of
from sordino.sim.charges import charges_of
from sordino.sim.folder import NO_FEDERATION, NO_PRIVACY, PRIVATE, RunFolder
from sordino.sim.variants import Base, Variant

PLAN = make_central(clip_norm=2.0, noise_multiplier=3.0)
CONFIG = ExperimentConfig(
    privacy=PrivacyConfig(trust="central", noise_multiplier=3.0),
    federation=FederationConfig(population=8, rounds=2),
)


def keep(state, row, number=1):
    tensors = {"a": np.asarray(row[:2], np.float32), "b": np.asarray(row[2:], np.float32)}
    KeptUpdates(state / UPDATES).keep(PLAN.sha256, number, pack(Envelope({}, tensors)))


def test_the_share_that_was_clipped_and_the_sum_beside_its_noise(tmp_path):
    states = [tmp_path / name for name in "abcd"]
    rows = ([2.0, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, 0.5, 0])
    for state, row in zip(states, rows, strict=False):  # the last wasn't asked
        keep(state, row)
    seen = observe(PLAN, 1, states)
    noise = PLAN.noise_multiplier * PLAN.sensitivity(4) * np.sqrt(4)
    assert seen["clip_fraction"] == pytest.approx(2 / 3)
    assert seen["update_snr"] == pytest.approx(np.linalg.norm([2, 2, 0.5]) / noise, rel=1e-3)
    assert observe(PLAN, 2, states) == {"clip_fraction": None, "update_snr": None}


@pytest.mark.parametrize(("population", "fits"), [(8, True), (500, True), (7, False)])
def test_clients_must_fit_in_the_population(population, fits):
    config = ExperimentConfig(
        privacy=CONFIG.privacy, federation=FederationConfig(population=population)
    )
    if fits:
        check_population(config)
    else:
        with pytest.raises(ConfigError, match=r"federation\.population >= the number of clients"):
            check_population(config)


def test_only_the_private_run_is_noised_and_a_client_alone_needs_none(tmp_path):
    base = Base("tiny", "tiny", "ab" * 32, {})
    plans = {
        name: Variant(name, range(8), CONFIG, base, RunFolder(tmp_path, "r")).plan()
        for name in (PRIVATE, NO_PRIVACY, NO_FEDERATION)
    }
    assert isinstance(plans[PRIVATE], CentralPlan)
    assert (plans[PRIVATE].cohort, plans[PRIVATE].rounds) == (8, 2)
    assert isinstance(plans[NO_PRIVACY], NoPrivacyPlan)
    assert isinstance(plans[NO_FEDERATION], NoPrivacyPlan)
    assert (plans[NO_FEDERATION].rounds, plans[NO_FEDERATION].steps_per_round) == (1, 20)


def test_the_claim_is_of_releases_and_each_client_has_its_own_charges(tmp_path):
    run, states = RunFolder(tmp_path, "r"), [tmp_path / "a", tmp_path / "b"]
    plan = make_central(
        sampling="poisson", sampling_rate=0.5, population=4, cohort=2, noise_multiplier=3.0
    )
    releases = releases_of(plan, run, CONFIG)
    for number in (1, 2, 3):
        releases.ledger.charge(plan.releases, number, "users")
    Ledger(states[0] / "ledger.db", "ann").charge(plan, 2, "data")
    export_ledgers([ledger_of(run)], run.ledger)
    found = charges_of(plan, run, ("ann", "ben"), states, [[], []])
    assert found.worst == (plan.releases.round_event(),) * 3
    assert found.opacus_steps == ((3.0, 0.5, 3),)
    assert found.spent[0] > found.spent[1] == 0.0


def test_a_seeded_coordinator_repeats_itself_and_no_stream_serves_twice(tmp_path):
    seeded = ExperimentConfig(
        privacy=PrivacyConfig(trust="central", seeded_noise=True),
        federation=FederationConfig(population=8),
    )
    source = releases_of(PLAN, RunFolder(tmp_path, "r"), seeded).source
    draws = {
        (purpose, number): tuple(source(purpose, number).coins(4))
        for purpose in ("coins", "noise")
        for number in (1, 2)
    }
    assert len(set(draws.values())) == 4
    assert draws["coins", 1] == tuple(source("coins", 1).coins(4))
    system = releases_of(PLAN, RunFolder(tmp_path, "r"), CONFIG).source
    assert system("noise", 1).private
    assert tuple(system("noise", 1).coins(4)) != tuple(system("noise", 1).coins(4))
