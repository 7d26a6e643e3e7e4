"""The bench compares equal work: every variant trains the same adapter on the same records.

Without clip and noise a step's sum of gradients is what PEFT's own backward gives, so the variants
are shown to differ in how they compute it and in nothing else.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sordino.client.bench import baselines, ours
from sordino.client.bench.workload import Variant, Workload
from sordino.core.adapters import is_lora_a

# A clip norm that no gradient reaches, and noise too small to see.
WORK = Workload(model="pocket", tokens=12, batch=3, clip_norm=1e4, noise_multiplier=1e-9)
MAKE = {
    "peft": baselines.peft,
    "hooks": baselines.hooks,
    "ghost": baselines.ghost,
    "plain": ours.plain,
    "private": ours.private,
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def variants(cache):
    opened = {n: make(WORK, Variant(name=n, make=""), cache) for n, make in MAKE.items()}
    start = opened["plain"].adapter()
    for name in ("peft", "hooks", "ghost"):
        with torch.no_grad():
            for key, p in named(opened[name]).items():
                p.copy_(torch.from_numpy(start[key]))
    return opened


def named(stepper):
    """The trained parameters by PEFT's name."""
    model = getattr(stepper.model, "_module", stepper.model)
    return {n.replace(".default", ""): p for n, p in model.named_parameters() if p.requires_grad}


def test_every_variant_starts_from_the_same_loss(variants):
    losses = {name: one.start_loss() for name, one in variants.items()}
    assert max(losses.values()) - min(losses.values()) < 1e-4, losses


def test_a_step_of_every_baseline_moves_the_adapter_as_the_engine_does(variants):
    engine = variants["plain"]
    engine.step()
    ours_after = {n: p.detach().numpy().copy() for n, p in engine._adapter.parameters.items()}
    before = engine.adapter()
    moved = {n: ours_after[n] - before[n] for n in ours_after if not is_lora_a(n)}
    assert max(np.abs(d).max() for d in moved.values()) == pytest.approx(
        WORK.learning_rate, rel=1e-3
    )
    for name in ("peft", "hooks", "ghost"):
        variants[name].step()
        for key, p in named(variants[name]).items():
            if is_lora_a(key):
                continue  # B = 0: A's gradient is zero, and Adam turns noise of any size into steps
            delta = p.detach().numpy() - before[key]
            # Adam's first step is the gradient's sign: it may differ where that is next to zero.
            same = np.mean(np.abs(delta - moved[key]) < 0.1 * WORK.learning_rate)
            assert same > 0.97, (name, key, same)


def test_the_private_step_goes_through_the_products_own_loop(variants):
    one = variants["private"]
    for _ in range(2):
        one.step()
    assert one.torch_peak() > 0
    assert one.switch_seconds() < 5


def test_fewer_records_at_once_hold_less(cache):
    work = replace(WORK, tokens=96, batch=8)
    whole, single = (
        ours.private(work, Variant(name="x", make="", micro_batch=n), cache).torch_peak()
        for n in (8, 1)
    )
    assert single < 0.7 * whole


def test_an_error_in_the_products_loop_reaches_the_bench(cache):
    one = ours.private(WORK, Variant(name="x", make=""), cache)
    one.rows.clear()
    one.rows.append(None)
    with pytest.raises(RuntimeError, match="the training loop ended"):
        one.step()


def test_the_fp32_folder_is_made_once_and_of_gguf_alone(cache):
    from sordino.client.model.store import resolve_model
    from sordino.core.config import ModelConfig

    files = resolve_model(ModelConfig(name="pocket"), cache)
    folder = baselines.dequantized(files, cache)
    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert baselines.dequantized(files, cache) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == made
    assert [p.name for p in folder.parent.glob("tmp*")] == []
