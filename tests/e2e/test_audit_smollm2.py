"""SmolLM2 attacked for real: system prompts, before and after a run with and without privacy."""

import os
from pathlib import Path

import pytest
from support.smollm2 import smollm2_files

from sordino.client.model.store import cache_root
from sordino.core.config import load_experiment
from sordino.privacy.audit import OneRun, PromptLeakage
from sordino.sim.audit.run import audit_run
from sordino.sim.run import simulate
from sordino.sim.scenarios import scenario_path

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def audit(tmp_path_factory):
    smollm2_files()
    cache = Path(os.environ.get("SORDINO_TEST_CACHE") or cache_root())
    config = load_experiment(
        scenario_path("smollm2-shakespeare"),
        ["audit.canaries=32", "audit.secrets=4", "audit.repetitions=[1, 8]"],
    )
    folder = simulate(config, tmp_path_factory.mktemp("runs") / "smollm2", cache=cache).folder
    return audit_run(folder, "full", cache=cache).audit


def test_prompts_are_attacked_before_and_after(audit):
    found = [e for e in audit.entries if isinstance(e.measure, PromptLeakage)]
    by_target = {e.measure.target: e for e in found}
    assert set(by_target) == {
        "system prompt", "earlier turns", "retrieved documents", "abuse"
    }  # fmt: skip
    prompts = by_target["system prompt"].figures
    assert [stage["name"] for stage in prompts["stages"]] == ["base", "private", "without privacy"]
    assert prompts["prompts"] >= 20
    assert prompts["queries"] >= 15
    for entry in found:  # a comparison is made only where the untouched base gives enough away
        assert entry.figures["power"] or entry.figures["verdict"].startswith("no power")


def test_no_lower_bound_contradicts_the_private_run(audit):
    bounds = [e for e in audit.entries if isinstance(e.measure, OneRun) and not e.control]
    private = [e for e in bounds if e.label == "private"]
    assert private
    assert not any(e.figures["alarm"] for e in private)
