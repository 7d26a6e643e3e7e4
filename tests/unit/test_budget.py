"""A memory budget decides how much goes through the model at once, and is kept."""

import dataclasses
import json

import pytest
from support import families, tiny

from sordino.client.batches import micro_batches, token_count
from sordino.client.bench.torch_memory import torch_peak
from sordino.client.budget import MB, step_cost, step_size
from sordino.client.lora import LoraAdapter
from sordino.client.model.scratch import SLAB_BYTES, drop_scratch
from sordino.client.model.store import open_base, resolve_model
from sordino.client.train import backward
from sordino.core.adapters import adapter_manifest, initial_adapter, trained_manifest
from sordino.core.config import (
    DataConfig,
    ExperimentConfig,
    LoraConfig,
    ModelConfig,
    PerformanceConfig,
)
from sordino.sim.budget import choose_step_size

COST = step_cost(tiny.decoder().architecture, rank=4, trained=10_000)


def chosen(memory_mb, longest=100_000, **settings):
    return step_size(COST, longest, PerformanceConfig(memory_mb=memory_mb, **settings))


def test_without_a_budget_the_settings_hold():
    assert chosen(0, checkpoint=True).recompute
    assert chosen(0).tokens == 0


def test_more_memory_means_more_at_once_and_less_twice():
    sizes = [chosen(mb) for mb in (1, 300, 1000, 3000, 10_000, 100_000)]
    assert [s.tokens for s in sizes] == sorted(s.tokens for s in sizes)
    assert [s.recompute for s in sizes] == sorted((s.recompute for s in sizes), reverse=True)
    assert sizes[0].recompute
    assert not sizes[-1].recompute
    assert sizes[-1].tokens == 800_000  # eight records: the setting is the most


def test_what_is_chosen_is_within_the_budget_or_says_so():
    for mb in (1, 100, 1000, 5000):
        size = chosen(mb)
        assert size.fits == (size.peak <= mb * MB)
        assert ("shorten" in str(size)) != size.fits
        assert f"about {size.peak // MB} MB" in str(size)


def test_a_checkpoint_that_was_asked_for_stays():
    assert chosen(10_000_000, checkpoint=True).recompute


def test_micro_batches_hold_at_most_so_many_tokens():
    records = [tiny.record(n, n) for n in (3, 9, 9, 20, 21, 50)]
    for limit in (10, 20, 40, 60, 1000):
        parts = micro_batches(records, 4, limit)
        assert sorted(id(r) for part in parts for r in part) == sorted(map(id, records))
        for part in parts:
            assert len(part) <= 4
            assert len(part) == 1 or sum(map(token_count, part)) <= limit


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("case", ["llama", "qwen3", "gemma3", "gpt2", "gpt_neox"])
def test_the_estimate_for_each_token_covers_what_torch_takes(case, recompute, tmp_path):
    folder = families.write_folder(tmp_path / "model", families.model(case))
    base = open_base(resolve_model(ModelConfig(name=str(folder)), tmp_path / "cache"))
    config = json.loads((folder / "config.json").read_text())
    lora = LoraConfig(rank=4, alpha=8.0, aggregation="fedit", targets=("attention", "mlp"))
    manifest = adapter_manifest(config, lora)
    trained = trained_manifest(manifest, "fedit", 1).names

    def peak(records):
        adapter = LoraAdapter(initial_adapter(manifest, 1), scale=2.0, trained=trained)
        drop_scratch()
        return torch_peak(
            lambda: backward(
                base.decoder, adapter, [tiny.record(101, n) for n in range(records)],
                recompute=recompute, reuse=True,
            )
        )  # fmt: skip

    few, many = 8, 64  # far apart: memory comes in slabs
    cost = step_cost(base.decoder.architecture, 4, manifest.parameter_count)
    expected = cost.peak(many * 100, many, recompute=recompute)
    expected -= cost.peak(few * 100, few, recompute=recompute)
    more = peak(many) - peak(few)
    assert 0.5 * expected <= more <= 1.05 * expected + SLAB_BYTES  # the last slab isn't full


def test_a_run_says_beforehand_what_its_clients_will_choose():
    config = ExperimentConfig(
        lora=LoraConfig(rank=4, alpha=8.0),
        data=DataConfig(max_tokens=129),
        performance=PerformanceConfig(memory_mb=60, micro_batch=16),
    )
    size = choose_step_size(config)
    assert size.fits
    assert size.tokens in range(128, 16 * 128, 128)
    tight = dataclasses.replace(config, performance=PerformanceConfig(memory_mb=1))
    assert "shorten the records" in str(choose_step_size(tight))
