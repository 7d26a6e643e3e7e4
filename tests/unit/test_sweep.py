"""A sweep before it runs: what its file says, and which cells it lays out."""

import json
import math
import statistics

import pytest
import scipy.stats

from sordino.core.config import ExperimentConfig
from sordino.core.errors import ConfigError
from sordino.core.settings import to_table
from sordino.sim.baselines import Baselines, without_privacy
from sordino.sim.scenarios import experiment
from sordino.sim.sweeps import SweepSpec, lay_out, over_seeds, read_spec
from sordino.sim.sweeps.jobs import set_aside

SMALL = {
    "data.clients": 3,
    "data.share": 0.1,
    "federation.min_updates": 3,
    "privacy.sampling_rate": 1.0,  # quickly solved for
}


def spec(**changes) -> SweepSpec:
    values = {
        "start": {},
        "settings": SMALL,
        "grid": {"privacy.epsilon": [2.0, 8.0], "lora.rank": [4, 8]},
        "seeds": (0, 1),
    }
    return SweepSpec(**{**values, **changes})


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def cells(cache):
    return lay_out(spec(cells=[{"privacy.epsilon": 2.0, "lora.rank": 4}, {"lora.rank": 16}]), cache)


def test_a_file_is_read_into_a_spec(tmp_path):
    (tmp_path / "own.toml").write_text("seed = 9\n[lora]\nrank = 2\n")
    path = tmp_path / "sweep.toml"
    path.write_text(
        """
        scenario = "own.toml"
        seeds = [3, 4]
        workers = 1
        [set]
        data.clients = 4
        "lora.alpha" = 8.0
        [grid]
        privacy.epsilon = [1, 2]
        [grid.lora]
        targets = [["v_proj"], ["q_proj", "v_proj"]]
        [[cells]]
        privacy.noise_multiplier = 0.7
        """
    )
    read, workers = read_spec(path)
    assert workers == 1
    assert read.start == {"seed": 9, "lora": {"rank": 2}}
    assert read.settings == {"data.clients": 4, "lora.alpha": 8.0}
    assert read.count == (2 * 2 + 1) * 2
    assert list(read.points())[1] == {
        "privacy.epsilon": 1,
        "lora.targets": ["q_proj", "v_proj"],
    }
    assert list(read.points())[-1] == {"privacy.noise_multiplier": 0.7}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"a sweep needs a \[grid\]"),
        ("[grid]\nlora.rank = 4", r"expected grid\.lora\.rank a list of values, got 4"),
        ("[grid]\nlora.rank = []", r"expected grid\.lora\.rank a list of values"),
        ("[grid]\nseed = [1, 2]", "seed is not for a sweep to set: name the seeds once"),
        ("[set]\nperformance.workers = 1\n[grid]\nlora.rank = [4]", r"performance\.workers is not"),
        ("seeds = []\n[grid]\nlora.rank = [4]", "expected seeds not empty, each once"),
        ("seeds = [1, 1]\n[grid]\nlora.rank = [4]", "expected seeds not empty, each once"),
        ("sedes = [1]\n[grid]\nlora.rank = [4]", "unknown key sedes: did you mean seeds"),
        ("workers = -1\n[grid]\nlora.rank = [4]", "expected workers >= 0, got -1"),
        ("cells = 3", "expected cells tables, each under"),
        ("scenario = 'nope.toml'\n[grid]\nlora.rank = [4]", "no scenario"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused(tmp_path, text, words):
    path = tmp_path / "sweep.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_spec(path)


def test_too_many_cells_are_refused_before_they_are_made():
    with pytest.raises(ConfigError, match="expected cells <= 10000, seeds included, got 1000000"):
        spec(grid={f"x.{i}": list(range(10)) for i in range(6)}, seeds=(0,))


def test_every_combination_with_every_seed_and_no_cell_twice(cells):
    found = [(c.settings.get("privacy.epsilon"), c.settings["lora.rank"], c.seed) for c in cells]
    assert found == [
        *((epsilon, rank, seed) for epsilon in (2.0, 8.0) for rank in (4, 8) for seed in (0, 1)),
        (None, 16, 0),
        (None, 16, 1),
    ]
    assert len({cell.name for cell in cells}) == len(cells)
    assert all(cell.config.performance.workers == 0 for cell in cells)


def test_what_a_cell_leaves_open_goes_with_the_cell(cells):
    rates = {c.config.privacy.epsilon: c.config.train.learning_rate for c in cells}
    assert rates == {2.0: 2.0, 8.0: 4.0}


def test_a_baseline_is_shared_over_epsilon_and_not_over_what_it_depends_on(cells):
    by_name = {}
    for cell in cells:
        by_name.setdefault(cell.baseline.name, set()).add((cell.config.lora.rank, cell.seed))
    assert all(len(fits) == 1 for fits in by_name.values())
    assert len(by_name) == 3 * 2
    one = cells[0].baseline.config
    assert (one.privacy.trust, one.train.optimizer, one.train.learning_rate) == (
        "none",
        "adam",
        0.02,
    )


def test_a_cell_keeps_its_name_when_the_sweep_grows(cache, cells):
    larger = lay_out(spec(grid={"lora.rank": [4], "privacy.epsilon": [1.0, 2.0]}), cache)
    shared = {c.name.rpartition("-")[2] for c in larger} & {
        c.name.rpartition("-")[2] for c in cells
    }
    assert len(shared) == 2  # ε = 2 with rank 4, two seeds


def test_all_impossible_cells_are_named_with_key_value_and_requirement(cache):
    bad = spec(
        grid={"privacy.epsilon": [1.0, -1.0], "data.clients": [3, 10_000]},
        cells=[
            {"lora.rnak": 4},
            {"lora.targets": ["nowhere"]},
            {"model.name": "pockte"},
            {"privacy.trust": "central"},
            {"privacy.trust": "central", "federation.population": 2},
            {"federation.min_updates": 9},
            {"metrics.metric": "loss", "metrics.noise_multiplier": 0.05},
        ],
    )
    with pytest.raises(ConfigError) as refused:
        lay_out(bad, cache)
    said = str(refused.value)
    assert said.startswith("10 cells are impossible, and nothing was run:")
    for words in (
        "privacy.epsilon = -1.0, data.clients = 3: expected privacy.epsilon finite and > 0, got -1",
        "privacy.epsilon = 1.0, data.clients = 10000: expected data.clients <= ",
        "lora.rnak = 4: unknown key lora.rnak: did you mean rank?",
        'lora.targets = ["nowhere"]: expected lora.targets one of',
        "model.name = pockte: no model 'pockte': did you mean pocket?",
        "privacy.trust = central: expected federation.population > 0 with central trust, got 0",
        "expected federation.population >= the number of clients (3), got 2",
        "federation.min_updates = 9: expected federation.min_updates <= the number of clients (3)",
        "which the plan's other releases take by themselves, got 8.0",
    ):
        assert words in said


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"privacy.noise_multiplier": 1.0}, "not beside privacy.noise_multiplier, got 2.0"),
        ({"privacy.trust": "none"}, 'not with privacy.trust = "none", got 2.0'),
    ],
)
def test_an_epsilon_that_decides_nothing_is_refused(cache, settings, words):
    with pytest.raises(ConfigError, match=words):
        lay_out(spec(settings={**SMALL, **settings}), cache)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"settings": {**SMALL, "privacy.seeded_noise": True}}, "privacy.seeded_noise false"),
        ({"cells": [{"privacy.trust": "none"}]}, "privacy.trust other than none"),
        (
            {"cells": [{"privacy.trust": "central", "federation.population": 99}]},
            "privacy.trust local, as in the cells before",
        ),
    ],
)
def test_what_has_no_bound_to_compose_is_refused_over_private_data(cache, changes, words):
    with pytest.raises(ConfigError, match=words):
        lay_out(spec(private=True, **changes), cache)


def test_a_twin_without_privacy_trains_as_a_runs_own_baseline_does():
    config = experiment("demo", {"train.momentum": 0.5, "privacy.epsilon": 2.0})
    twin = without_privacy(config)
    assert twin.train == config.baseline.applied_to(config.train)
    assert twin == without_privacy(experiment("demo", {"train.momentum": 0.5}))
    own = {"train", "baseline", "privacy"}
    table, other = to_table(config), to_table(twin)
    assert {k for k in table if table[k] != other.get(k)} <= own
    assert isinstance(twin, ExperimentConfig)


def test_a_baseline_is_either_run_or_known():
    with pytest.raises(ConfigError, match="each at most once"):
        Baselines(run=("no_privacy",), known={"no_privacy": None})
    with pytest.raises(ConfigError, match="no_privacy and no_federation"):
        Baselines(run=("private",))


def test_the_interval_over_seeds_is_students():
    values = [0.1, 0.4, 0.2]
    figure = over_seeds(values)
    error = statistics.stdev(values) / math.sqrt(3)
    low, high = scipy.stats.t.interval(0.95, 2, loc=statistics.fmean(values), scale=error)
    assert (figure.low, figure.high) == pytest.approx((low, high))
    assert over_seeds([0.3]).low is None


def test_only_an_unfinished_run_makes_room(tmp_path):
    run = tmp_path / "cells" / "a"
    (run / "state").mkdir(parents=True)
    set_aside(run, keep=True)
    assert [p.name for p in (tmp_path / "abandoned").iterdir()] == ["a~1"]
    (run / "state").mkdir(parents=True)
    set_aside(run, keep=False)
    assert not run.exists()
    assert [p.name for p in (tmp_path / "abandoned").iterdir()] == ["a~1"]
    (run / "state").mkdir(parents=True)
    (run / "metrics.jsonl").write_text(json.dumps({"event": "finished", "processor_s": 1.0}))
    other = tmp_path / "cells" / "b"
    other.mkdir()
    (other / "precious.txt").write_text("x")
    for folder in (run, other):
        with pytest.raises(ConfigError, match="move it away"):
            set_aside(folder, keep=False)
        assert folder.exists()
