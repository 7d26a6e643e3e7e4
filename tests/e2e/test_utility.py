"""What the scenarios promise of utility, for the shipped seeds. Minutes: marked slow."""

from dataclasses import replace

import pytest

from sordino.core.config import load_experiment
from sordino.sim.run import simulate
from sordino.sim.scenarios import scenario_path


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_private_run_keeps_its_share_of_the_gain(tmp_path, seed):
    config = load_experiment(scenario_path("demo"), [f"seed={seed}"])
    config = replace(config, privacy=replace(config.privacy, seeded_noise=True))
    assert config.privacy.epsilon == 8.0
    assert config.privacy.delta == 1e-5
    report = simulate(config, tmp_path / "run", cache=tmp_path / "cache").report
    private, twin = report.utility.private.interval, report.utility.no_privacy.interval
    assert report.guarantee.epsilon.pld <= 8.0
    assert twin.estimate >= 0.05
    assert private.estimate >= 0.3 * twin.estimate
    assert private.low > 0


@pytest.mark.slow
def test_central_trust_gains_with_its_population(tmp_path):
    config = load_experiment(scenario_path("central"), ["privacy.seeded_noise=true"])
    report = simulate(config, tmp_path / "run", cache=tmp_path / "cache").report
    private, twin = report.utility.private.interval, report.utility.no_privacy.interval
    assert (report.guarantee.unit, report.guarantee.epsilon.pld <= 8.0) == ("user", True)
    assert private.estimate >= 0.3 * twin.estimate
    assert private.low > 0
