"""Settings: read from TOML, refused with the field, the value and what was required."""

import dataclasses
import re
import tomllib
from pathlib import Path

import pytest

from sordino.core.config import BaselineConfig, ExperimentConfig, TrainConfig, load_experiment
from sordino.core.errors import ConfigError
from sordino.core.settings import build, set_by_path, to_toml


def experiment(text: str) -> ExperimentConfig:
    return build(ExperimentConfig, tomllib.loads(text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nope = 1", "unknown key nope"),
        ("[train]\nlearning_rte = 1.0", r"unknown key train\.learning_rte: did you mean"),
        ("[train]\nlearning_rate = 'fast'", r"train\.learning_rate a number, got 'fast'"),
        ("[train]\nlocal_steps = 2.5", r"train\.local_steps a whole number, got 2\.5"),
        ("[train]\nlocal_steps = true", r"train\.local_steps a whole number, got True"),
        ("[train]\nlocal_steps = 0", r"train\.local_steps >= 1, got 0"),
        ("[train]\noptimizer = 'lion'", r"train\.optimizer one of sgd, adam, got 'lion'"),
        ("[train]\nlearning_rate = nan", r"train\.learning_rate finite and > 0, got nan"),
        ("train = 3", "train a section, got 3"),
        ("[data]\nusers = 'anna'", r"data\.users a list, got 'anna'"),
        ("[data]\nusers = [1]", r"data\.users\[0\] a string, got 1"),
        ("[data]\nheld_out = 1.0", r"data\.held_out in \(0, 1\), got 1\.0"),
        ("[privacy]\nepsilon = -1", r"privacy\.epsilon finite and > 0, got -1\.0"),
        ("[privacy]\nepsilon = inf", r"privacy\.epsilon finite and > 0, got inf"),
        ("[privacy]\ndelta = 1.0", r"privacy\.delta in \(0, 1\), got 1\.0"),
        ("[privacy]\nnoise_multiplier = 0.0", r"privacy\.noise_multiplier .*privacy.trust"),
        ("[privacy]\nclip_norm = inf", r"privacy\.clip_norm finite and > 0, got inf"),
        ("[privacy]\nsampling_rate = 1.5", r"privacy\.sampling_rate in \(0, 1\], got 1\.5"),
        ("[privacy]\nexpected_batch = 0", r"privacy\.expected_batch finite and > 0, got 0\.0"),
        ("[privacy]\ntrust = 'distributed'", "needs secure aggregation"),
        ("[baseline]\nlearning_rate = 0.0", r"baseline\.learning_rate finite and > 0, got 0\.0"),
        ("[federation]\nmin_updates = 9", r"federation\.min_updates <= the number of clients"),
        ("[performance]\nworkers = -1", r"performance\.workers >= 0, got -1"),
        ("seed = -1", "seed >= 0, got -1"),
    ],
)
def test_what_cannot_be_is_refused_by_name(text, message):
    with pytest.raises(ConfigError, match=message):
        experiment(text)


def test_a_configuration_survives_being_written_and_read():
    config = experiment(
        "seed = 7\n[data]\nusers = ['a \"b\"', 'c\\\\d']\n[privacy]\nnoise_multiplier = 1.5\n"
    )
    assert experiment(to_toml(config)) == config


def test_whole_numbers_serve_as_numbers():
    assert experiment("[train]\nlearning_rate = 2").train.learning_rate == 2.0


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("train.local_steps=3", 3),
        ("train.local_steps = 3", 3),
        ("model.name=pocket", "pocket"),
        ('model.name="a=b"', "a=b"),
        ("data.users=['x', 'y']", ["x", "y"]),
    ],
)
def test_overrides_are_toml_or_else_strings(assignment, value):
    table = {}
    set_by_path(table, assignment)
    section, key = assignment.split("=")[0].strip().split(".")
    assert table == {section: {key: value}}


@pytest.mark.parametrize("assignment", ["train", "=1", "train..x=1", ".=2"])
def test_overrides_without_a_key_or_value_are_refused(assignment):
    with pytest.raises(ConfigError, match="--set"):
        set_by_path({}, assignment)


def test_an_override_cannot_go_below_a_value():
    with pytest.raises(ConfigError, match="seed a section"):
        set_by_path({"seed": 3}, "seed.x=1")


def test_unreadable_files_are_clear(tmp_path):
    with pytest.raises(ConfigError, match="can't read"):
        load_experiment(tmp_path / "missing.toml")
    (tmp_path / "bad.toml").write_text("a = = 1")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_experiment(tmp_path / "bad.toml")


def test_the_baseline_changes_only_what_it_names():
    train = TrainConfig(learning_rate=2.0, local_steps=7, momentum=0.5)
    assert BaselineConfig().applied_to(train) == train
    own = BaselineConfig(optimizer="adam", learning_rate=0.01).applied_to(train)
    assert (own.optimizer, own.learning_rate, own.local_steps) == ("adam", 0.01, 7)


def test_every_setting_is_documented_with_no_surplus():
    page = (Path(__file__).parents[2] / "docs" / "settings.md").read_text()
    documented = set(re.findall(r"^\| `([a-z_.]+)` \|", page, flags=re.MULTILINE))
    known = set()
    for section in dataclasses.fields(ExperimentConfig):
        value = getattr(ExperimentConfig(), section.name)
        if dataclasses.is_dataclass(value):
            known |= {f"{section.name}.{f.name}" for f in dataclasses.fields(value)}
        else:
            known.add(section.name)
    assert documented == known
