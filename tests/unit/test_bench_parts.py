"""The parts of the bench: what is measured is what is said."""

import mmap
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from sordino.client import device
from sordino.client.bench import memory
from sordino.client.bench.torch_memory import torch_peak
from sordino.client.bench.workload import (
    Variant,
    Workload,
    decode_variant,
    decode_workload,
    encode,
)
from sordino.client.model.store import resolve_model
from sordino.core.config import ModelConfig
from sordino.core.errors import ConfigError
from sordino.sim.bench.budgets import within_budgets
from sordino.sim.bench.catalogue import PRIVATE, Target, choose
from sordino.sim.bench.ratios import median_interval, paired_ratio, ratios, verdict


@dataclass
class Timed:
    seconds: list
    cpu_seconds: list
    variant: Variant | None = None
    median_s: float = 0.0
    torch_peak_mb: float = 0.0


def timed(*seconds):
    return Timed(list(seconds), list(seconds))


def test_a_machine_that_slows_both_sides_down_changes_no_ratio():
    load = np.array([1.0, 9.0, 2.0, 5.0, 1.0, 3.0, 1.0, 4.0])
    got = paired_ratio(Target("a", "b", 0.85), timed(*(0.8 * load)), timed(*load))
    assert got.median == pytest.approx(0.8)
    assert got.low == pytest.approx(got.high)
    assert got.verdict == "met"


def test_only_what_was_measured_has_a_ratio():
    targets = (Target("a", "b"), Target("a", "c"))
    assert [r.to for r in ratios({"a": timed(1), "b": timed(2)}, targets)] == ["b"]


def test_the_interval_holds_the_median_as_often_as_it_says():
    rng = np.random.default_rng(5)
    draws = rng.standard_cauchy((4000, 10))  # no mean, let alone a normal one
    held, covers = 0, 0.0
    for row in draws:
        low, high, covers = median_interval(row.tolist())
        held += low <= 0 <= high
    assert covers == 0.978515625
    assert abs(held / len(draws) - covers) < 4 * np.sqrt(covers * (1 - covers) / len(draws))


def test_five_rounds_are_too_few_for_a_verdict():
    low, high, coverage = median_interval([1.0] * 5)
    assert (low, high, coverage) == (1.0, 1.0, 0.9375)
    assert verdict(low, high, coverage, 2.0) == "can't tell"
    assert median_interval([1.0] * 6)[2] > 0.95


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(0.8, 0.9, "met"), (0.9, 1.0, "met"), (0.9, 1.01, "can't tell"), (1.01, 1.2, "missed")],
)
def test_a_verdict_needs_the_whole_interval(low, high, said):
    assert verdict(low, high, 0.97, 1.0) == said
    assert verdict(low, high, 0.97, None) == ""


def test_a_budget_takes_the_fastest_setting_within_it():
    def setting(name, seconds, peak):
        return Timed([seconds] * 8, [seconds] * 8, Variant(name=name, make=PRIVATE), seconds, peak)

    found = within_budgets(
        [setting("fast", 1.0, 900), setting("mid", 1.04, 300), setting("tiny", 1.3, 200)]
    )
    wide, narrow = found
    assert (wide.ratio.of, wide.ratio.to, wide.ratio.verdict) == ("mid", "fast", "met")
    assert narrow.torch_peak_mb == 180
    assert narrow.ratio is None


def test_groups_and_names_may_be_mixed_and_nothing_runs_twice():
    names = [v.name for v in choose(["private", "main"])]
    assert names[0] == "private"
    assert len(names) == len(set(names)) == 5
    assert len(choose(["settings"])) == 8


def test_settings_go_through_a_pipe_unchanged():
    work, variant = Workload(tokens=64, alpha=4), choose(["m1-ckpt"])[0]
    assert decode_workload(encode(work)) == work
    assert decode_variant(encode(variant)) == variant
    with pytest.raises(ConfigError, match="expected batch >= 2, got 1"):
        Workload(batch=1)


def test_torch_peak_counts_what_is_held_together():
    held = []

    def step():
        first = torch.zeros(1 << 20)  # 4 MiB
        second = first + 1  # 8 MiB at once
        del first
        third = second + 1  # 8 MiB again
        del second, third
        held.append(torch.zeros(1 << 18))

    assert torch_peak(step) == pytest.approx(8 * 2**20, rel=1e-3)


def test_a_mapped_file_is_found_by_its_name(tmp_path):
    path = tmp_path / "a file - with dashes.bin"
    path.write_bytes(bytes(range(256)) * 4096)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        assert sum(mapped[::4096]) == 0
        read = memory.mapped_bytes(path)
        mapped[:8192] = bytes(8192)
        changed = memory.mapped_bytes(path)
    assert read["Rss"] == changed["Rss"] == 2**20
    assert 0 < read["Pss"] <= read["Rss"]
    assert (read["Anonymous"], changed["Anonymous"]) == (0, 8192)
    assert memory.mapped_bytes(tmp_path / "another")["Rss"] == 0


def test_the_peak_of_resident_memory_begins_anew():
    if not memory.reset_peak():
        pytest.skip("this kernel doesn't let a process reset its peak")
    before = device.resident_mb("VmHWM")
    held = np.ones(12_500_000)  # 100 MB
    assert device.resident_mb("VmHWM") - before == pytest.approx(100, abs=15)
    del held
    memory.reset_peak()
    assert device.resident_mb("VmHWM") - before < 50


def test_what_the_kernel_does_not_say_is_none(tmp_path):
    assert device.resident_mb(status=tmp_path / "status") is None
    assert memory.reset_peak(tmp_path / "no folder" / "clear_refs") is False


def test_a_process_that_trains_imports_no_large_library(tmp_path):
    resolve_model(ModelConfig(name="pocket"), tmp_path)  # parsing a new file takes the gguf library
    code = """
import sys
from pathlib import Path
from sordino.client.bench import ours
from sordino.client.bench.workload import Variant, Workload
from sordino.client.bench.memory import heavy_modules
work = Workload(model="pocket", tokens=8, batch=2)
for make in (ours.private, ours.plain):
    one = make(work, Variant(name="x", make=""), Path(sys.argv[1]))
    one.step()
print(heavy_modules())
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip().splitlines()[-1:] == ["[]"], done.stderr
