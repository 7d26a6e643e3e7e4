"""A simulated fleet: drawn from its own seed, each device and round by itself."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from sordino.core.config import ExperimentConfig
from sordino.core.errors import ConfigError
from sordino.core.population import DevicesConfig
from sordino.core.settings import build
from sordino.sim import experiment, simulate
from sordino.sim.baselines import Baselines
from sordino.sim.fleet import Fleet, totals
from sordino.sim.folder import PRIVATE, RunFolder

CONFIG = DevicesConfig(
    classes=("phone", "board"),
    shares=(3.0, 1.0),
    tokens_per_s=(400.0, 100.0),
    up_mbps=(8.0, 80.0),
    down_mbps=(16.0, 80.0),
    watts=(3.0, 5.0),
    online=0.5,
    dropout=0.2,
    stragglers=0.25,
)
FLEET = Fleet(CONFIG)
PLACES = [(number, client) for number in range(1, 11) for client in range(400)]


def share(drawn):
    return np.mean(list(drawn))


def near(chance):
    """Four standard deviations of a share of 4,000 draws."""
    return pytest.approx(chance, abs=4 * math.sqrt(chance * (1 - chance) / len(PLACES)))


def test_devices_are_there_lost_and_slow_as_often_as_was_said():
    assert share(FLEET.online(*place, 0.0) for place in PLACES) == near(0.5)
    assert share(FLEET.lost(*place) for place in PLACES) == near(0.2)
    assert share(FLEET.slow(*place) for place in PLACES) == near(0.25)
    assert share(FLEET.device(client) == 0 for client in range(4000)) == near(0.75)


def test_the_draws_belong_to_their_place_and_to_the_seed():
    again = Fleet(CONFIG)
    fates = [FLEET.fate(*place, 0.0) for place in PLACES]
    assert [again.fate(*place, 0.0) for place in reversed(PLACES)] == fates[::-1]
    other = Fleet(replace(CONFIG, seed=1))
    assert [other.fate(*place, 0.0) for place in PLACES] != fates
    assert set(fates) == {"", "lost", "offline"}


def test_more_devices_are_there_at_night():
    swinging = replace(CONFIG, online_swing=0.8)
    night, day = Fleet(replace(swinging, start_hour=3.0)), Fleet(replace(swinging, start_hour=15.0))
    assert share(night.online(*place, 0.0) for place in PLACES) > 0.8
    assert share(day.online(*place, 0.0) for place in PLACES) < 0.2
    # Twelve simulated hours later it is the other way round.
    assert share(night.online(*place, 12 * 3600.0) for place in PLACES) < 0.2


def test_seconds_and_joules_are_plain_arithmetic():
    client = next(c for c in range(99) if FLEET.device(c) == 0)
    number = next(n for n in range(1, 99) if not FLEET.slow(n, client))
    seconds, joules = FLEET.spent(number, client, tokens=800, bytes_up=1e6, bytes_down=2e6)
    assert seconds == pytest.approx(800 / 400 + 1.0 + 1.0)
    assert joules == pytest.approx(3.0 * 2.0)
    late = next(n for n in range(1, 99) if FLEET.slow(n, client))
    assert FLEET.spent(late, client, tokens=800, bytes_up=0, bytes_down=0) == (8.0, 24.0)


@pytest.mark.parametrize(
    ("devices", "words"),
    [
        ({"classes": ["a"]}, r"devices\.tokens_per_s one a class \(1\)"),
        ({"watts": [1.0]}, r"devices\.watts one a class \(0\)"),
        ({"online": 1.5}, r"devices\.online in \[0, 1\], got 1\.5"),
        ({"slowdown": 0.5}, r"devices\.slowdown finite and >= 1"),
        ({"start_hour": 24.0}, r"devices\.start_hour in \[0, 24\)"),
        ({"seed": -1}, r"devices\.seed >= 0"),
    ],
)
def test_impossible_devices_are_refused(devices, words):
    with pytest.raises(ConfigError, match=words):
        build(ExperimentConfig, {"devices": devices})


@pytest.mark.slow
def test_a_run_on_a_simulated_fleet(tmp_path):
    devices = {
        "classes": ["slow"], "tokens_per_s": [50.0], "up_mbps": [1.0], "down_mbps": [1.0],
        "watts": [2.0], "online": 0.6, "dropout": 0.3,
    }  # fmt: skip
    config = experiment(
        {"devices": devices},
        {
            "data.clients": 6,
            "data.share": 0.1,
            "train.local_steps": 1,
            "federation.rounds": 3,
            "performance.workers": 0,
            "privacy.seeded_noise": True,
        },
    )
    made = simulate(config, tmp_path / "run", baselines=Baselines(), cache=tmp_path / "cache")
    run = RunFolder(made.folder, "run")
    told, rounds = run.events("simulated", PRIVATE), run.rounds(PRIVATE)
    fleet = Fleet(config.devices)
    for one, real in zip(told, rounds, strict=True):
        there = [c for c in range(6) if fleet.online(one["round"], c, 0.0)]
        answered = [c for c in there if not fleet.lost(one["round"], c)]
        assert (one["asked"], one["answered"]) == (len(there), len(answered))
        assert real["updates"] == len(answered)
    seconds, joules = totals(run, PRIVATE)
    assert seconds == pytest.approx(sum(one["simulated_wall_s"] for one in told))
    assert joules > 0
    charged = [json.loads(line) for line in (made.folder / "ledger.jsonl").open()]
    reserved = [entry for entry in charged if entry["state"] == "reserve"]
    assert len(reserved) == sum(
        one["asked"] for one in told
    )  # lost answers are paid, absence isn't
    spent = [client.epsilon for client in made.report.clients]
    assert made.report.guarantee.epsilon.pld == pytest.approx(max(spent))
