"""The bench as it is used: processes that take turns, ratios from the raw pairs, every field."""

import json
import os
import statistics
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sordino.cli import bench as command
from sordino.cli.main import app
from sordino.client.bench.workload import Variant, Workload
from sordino.client.model.store import cache_root
from sordino.core.errors import ConfigError, SordinoError
from sordino.sim.bench.catalogue import PLAIN, Target, choose
from sordino.sim.bench.ratios import paired_ratio
from sordino.sim.bench.run import Request, run
from sordino.sim.progress import Silent

QUICK = Workload(model="pocket", tokens=24, batch=2)


def variant(name, make):
    return Variant(name=name, make=make)


@pytest.fixture(scope="module")
def measured():
    """The engine, and the same made to do its work three times over."""
    pair = (variant("plain", PLAIN), variant("thrice", "support.slow_step:thrice"))
    request = Request(work=QUICK, variants=pair, rounds=8, warm_up=1, around=False)
    return run(request, cache_root(), Silent())


def test_a_slower_variant_is_shown_as_slower(measured):
    plain, thrice = measured.measured
    ratio = paired_ratio(Target("thrice", "plain", 1.05), thrice, plain)
    # By the time spent computing, which other work on the machine doesn't stretch.
    assert 2.0 < ratio.cpu_median < 4.5
    assert ratio.verdict == "missed"
    assert paired_ratio(Target("plain", "thrice", 0.8), plain, thrice).verdict == "met"


def test_each_round_runs_every_variant_once_in_an_order_of_its_own(measured):
    assert all(sorted(names) == ["plain", "thrice"] for names in measured.order)
    assert len(set(measured.order)) == 2
    assert all(len(m.seconds) == len(m.cpu_seconds) == 8 for m in measured.measured)


def test_both_start_from_the_same_loss_and_hold_the_same_base(measured):
    plain, thrice = measured.measured
    assert plain.start_loss == thrice.start_loss
    assert plain.base_mb == thrice.base_mb == pytest.approx(1.9, abs=0.5)
    # Three steps in a row need no more memory than one.
    assert thrice.torch_peak_mb == pytest.approx(plain.torch_peak_mb, rel=0.02)
    assert 0 < plain.torch_peak_mb < 50
    assert plain.imports_mb < plain.rss_peak_mb


def test_the_command_writes_every_field_and_prints_the_table(tmp_path, monkeypatch):
    out = tmp_path / "step.json"
    monkeypatch.chdir(tmp_path)
    quick = ("--quick", "--rounds", "6", "--variants", "plain,private", "--no-around")
    done = CliRunner().invoke(app, ["bench", "step", *quick, "--json", str(out)])
    assert done.exit_code == 0, done.output
    written = json.loads(out.read_text())
    assert set(written) == {
        "schema", "date", "machine", "versions", "request", "measured", "order", "ratios",
        "ratio_method", "budgets", "around", "load",
    }  # fmt: skip
    assert written["machine"]["cores"] == len(os.sched_getaffinity(0))
    assert set(written["versions"]) == set(command.PACKAGES)
    by_name = {m["variant"]["name"]: m for m in written["measured"]}
    ratio = written["ratios"][0]
    assert (ratio["of"], ratio["to"]) == ("private", "plain")
    pairs = [
        a / b
        for a, b in zip(by_name["private"]["seconds"], by_name["plain"]["seconds"], strict=True)
    ]
    assert ratio["median"] == statistics.median(pairs)
    assert (ratio["low"], ratio["high"]) == (min(pairs), max(pairs))
    for one in written["measured"]:
        assert one["tokens_per_s"] == pytest.approx(4 * 32 / one["median_s"])
        assert "transformers" not in one["heavy_modules"]
    for words in ("private ÷ plain", "rounds", "Machine:", "Versions:", "Imports alone"):
        assert words in done.output


def test_a_variant_that_cannot_be_opened_is_one_error_and_leaves_no_process(capfd):
    variants = (variant("broken", "json:nothing"),)
    broken = Request(work=QUICK, variants=variants, around=False)
    with pytest.raises(SordinoError, match="has no attribute 'nothing'"):
        run(broken, cache_root(), Silent())
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    names = [Path(f"/proc/{child}/cmdline").read_bytes() for child in children]
    assert not any(b"spawn_main" in name for name in names)


def test_an_unknown_variant_is_refused_by_name():
    with pytest.raises(ConfigError, match="to be one of main, ffa, settings, allocator, peft"):
        choose(["pefd"])
