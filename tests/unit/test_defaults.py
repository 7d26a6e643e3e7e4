"""What is filled in where a configuration leaves it open, by the size of the base."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.families import CONFIGS

from sordino.client.model.registry import POCKET_FOLDER
from sordino.core.adapters import adapter_manifest
from sordino.core.config import (
    ExperimentConfig,
    load_experiment,
    reload_experiment,
    resolve_experiment,
)
from sordino.core.defaults import (
    _KNOWN,
    SIZES,
    SMALL,
    TINY,
    block_parameters,
    defaults_for,
    with_defaults,
)
from sordino.core.errors import ConfigError
from sordino.core.settings import build, to_toml
from sordino.sim.scenarios import scenario_path

SMOLLM2 = {"model": {"name": "smollm2-135m"}}
POCKET_CONFIG = json.loads((POCKET_FOLDER / "config.json").read_text())


def test_the_known_sizes_are_those_of_the_models():
    assert POCKET_CONFIG.items() >= _KNOWN["pocket"].items()
    assert block_parameters(_KNOWN["pocket"]) == 2_359_296
    assert block_parameters(_KNOWN["smollm2-135m"]) == 106_168_320
    assert defaults_for(_KNOWN["pocket"]) is TINY
    assert defaults_for(_KNOWN["smollm2-135m"]) is SMALL


def test_the_name_of_a_model_is_enough():
    config = resolve_experiment(SMOLLM2)
    assert config.train.learning_rate == SMALL.rates[SMALL.optimizer]
    assert config.lora.targets == SMALL.targets
    assert config.privacy.clip_norm == SMALL.sections["privacy"]["clip_norm"]
    assert config.baseline.optimizer == SMALL.optimizer_without_privacy
    assert resolve_experiment({}).lora.targets == TINY.targets  # pocket is the default model


def test_another_model_over_the_demo_gets_its_own_settings():
    """`sordino simulate --model smollm2-135m`: the demo's data and ε, SmolLM2's training."""
    demo = load_experiment(scenario_path("demo"), ["model.name=smollm2-135m"])
    own = resolve_experiment(SMOLLM2)
    assert (demo.train, demo.lora, demo.privacy) == (own.train, own.lora, own.privacy)
    assert demo.data.clients == 8


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_rate_goes_with_its_optimizer_and_with_the_noise(size, optimizer):
    name = "pocket" if size is TINY else "smollm2-135m"
    model, train = {"name": name}, {"optimizer": optimizer}
    noisy = resolve_experiment({"model": model, "train": train, "baseline": train})
    assert noisy.train.learning_rate == size.rates[optimizer]
    assert noisy.baseline.learning_rate == size.rates_without_privacy[optimizer]
    free = resolve_experiment({"model": model, "train": train, "privacy": {"trust": "none"}})
    assert free.train.learning_rate == size.rates_without_privacy[optimizer]


def documented(size):
    """A size's settings, as a page writes them."""

    def rates(table):
        return ", ".join(f"{value} for `{name}`" for name, value in table.items())

    yield "lora.targets", ", ".join(f"`{target}`" for target in size.targets)
    yield "train.optimizer", f"`{size.optimizer}`"
    yield "train.learning_rate", rates(size.rates)
    yield "baseline.optimizer", f"`{size.optimizer_without_privacy}`"
    yield "baseline.learning_rate", rates(size.rates_without_privacy)
    for section, values in size.sections.items():
        for name, value in values.items():
            yield f"{section}.{name}", f"{value:g}"


def test_the_page_of_settings_says_what_goes_with_the_base():
    page = (Path(__file__).parents[2] / "docs" / "settings.md").read_text()
    for (name, tiny), (same, small) in zip(documented(TINY), documented(SMALL), strict=True):
        assert name == same
        assert f"| `{name}` | by the base |" in page
        assert f"| `{name}` | {tiny} | {small} |" in page


@pytest.mark.parametrize(("epsilon", "rate"), [(8, 4.0), (2, 2.0), (0.5, 1.0), (100, 4.0)])
def test_under_more_noise_sgd_goes_slower(epsilon, rate):
    assert TINY.rates["sgd"] == 4.0
    privacy = {"epsilon": epsilon}
    assert resolve_experiment({"privacy": privacy}).train.learning_rate == rate
    adam = {"privacy": privacy, "train": {"optimizer": "adam"}}
    assert resolve_experiment(adam).train.learning_rate == TINY.rates["adam"]
    given = {"privacy": {**privacy, "noise_multiplier": 1.0}}
    assert resolve_experiment(given).train.learning_rate == 4.0


@pytest.mark.parametrize("epsilon", ["much", -1, True, float("nan")])
def test_an_impossible_epsilon_is_still_refused_by_name(epsilon):
    with pytest.raises(ConfigError, match=r"privacy\.epsilon"):
        resolve_experiment({"privacy": {"epsilon": epsilon}})


def test_what_is_given_is_never_changed():
    given = {
        "train": {"optimizer": "adam", "learning_rate": 0.25, "local_steps": 3},
        "lora": {"targets": ["q_proj"], "rank": 2},
        "privacy": {"clip_norm": 0.7, "epsilon": 2.0},
        "baseline": {"learning_rate": 0.125},
    }
    filled = with_defaults(given)
    for section, values in given.items():
        assert filled[section].items() >= values.items()


def test_central_trust_keeps_its_own_clip():
    federation = {"population": 10}
    config = resolve_experiment({"privacy": {"trust": "central"}, "federation": federation})
    plain = ExperimentConfig()
    assert config.privacy.clip_norm == plain.privacy.clip_norm
    assert config.train.learning_rate == plain.train.learning_rate


@pytest.mark.parametrize("kind", CONFIGS)
def test_targets_are_linears_that_the_base_has(kind):
    architecture = CONFIGS[kind]
    config = resolve_experiment({"model": {"name": "some.gguf"}}, architecture)
    assert adapter_manifest(architecture, config.lora).tensors


def test_a_folder_s_own_config_says_its_size(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(POCKET_CONFIG))
    config = resolve_experiment({"model": {"name": str(tmp_path)}})
    assert config.lora.targets == TINY.targets


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"model_type": "bert"}'])
def test_a_folder_that_says_nothing_counts_as_large(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    config = resolve_experiment({"model": {"name": str(tmp_path)}})
    assert config.train.local_steps == SMALL.sections["train"]["local_steps"]
    assert config.lora.targets == ExperimentConfig().lora.targets


@pytest.mark.parametrize("section", ["train", "privacy", "baseline", "model", "lora"])
def test_a_section_that_is_none_is_refused_by_name(section):
    with pytest.raises(ConfigError, match=f"expected {section} a section, got 3"):
        resolve_experiment({section: 3})


def test_a_wrong_optimizer_is_still_refused():
    with pytest.raises(ConfigError, match=r"train\.optimizer one of sgd, adam, got 'lion'"):
        resolve_experiment({"train": {"optimizer": "lion"}})


@given(st.sampled_from(["pocket", "smollm2-135m"]), st.sampled_from(["local", "none"]))
@settings(max_examples=8, deadline=None)
def test_resolving_twice_changes_nothing(name, trust):
    table = {"model": {"name": name}, "privacy": {"trust": trust}}
    once = with_defaults(table)
    assert with_defaults(once) == once


def test_a_run_is_read_back_as_it_was_written(tmp_path):
    """A resumed run may not take up defaults that its configuration didn't have."""
    path = tmp_path / "config.toml"
    plain = build(ExperimentConfig, {"train": {"optimizer": "adam", "learning_rate": 0.5}})
    for config in (plain, resolve_experiment(SMOLLM2)):
        path.write_text(to_toml(config))
        assert reload_experiment(path) == config
    path.write_text(to_toml(plain))
    assert load_experiment(path).baseline != plain.baseline  # so the two ways do differ
