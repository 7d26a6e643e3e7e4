"""Faults that break a claim of ε ≤ 1 are caught, each by its adversary; the real way isn't."""

import pytest

from sordino.sim.audit.selftest import self_test

FAULTS = {
    "noise at a tenth of what was accounted": "one-run audit",
    "no clipping": "one-run audit",
    "no sampling where it is claimed": "one-run audit",
    "one noise stream for two releases": "differencing",
    "a loss averaged over the batch's tokens": "neighbour probe",
}


def trials(seed, cache):
    return {trial.fault: trial for trial in self_test(seed, cache)}


def test_every_fault_is_caught_and_the_real_mechanism_raises_no_alarm(tmp_path):
    found = trials(0, tmp_path)
    assert {fault: trial.adversary for fault, trial in found.items()} == FAULTS
    for fault, trial in found.items():
        assert trial.broken["alarm"], fault
        assert not trial.real["alarm"], fault
        assert trial.passed
    # Little noise is as good as none: there the bound comes near what the guesses could show. What
    # the other faults let be seen depends on the batches that were drawn.
    broken = found["noise at a tenth of what was accounted"].broken
    assert broken["epsilon_lower"] >= 0.6 * broken["ceiling"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 20))
def test_no_alarm_is_false_over_many_seeds(seed, tmp_path):
    for fault, trial in trials(seed, tmp_path).items():
        assert trial.passed, (fault, trial.broken, trial.real)
