"""The real local step under an adaptive clip: what one record moves, and what a metric looks at."""

import numpy as np
import pytest
import torch
from support import tiny
from support.rounds import Still, mechanism, plan

from sordino.client import train
from sordino.client.budget import StepSize
from sordino.client.lora import LoraAdapter
from sordino.client.measure import first_choices, record_values
from sordino.client.train import Observations, PlanOptimizer
from sordino.core.adapters import adapter_manifest, trained_manifest
from sordino.core.config import LoraConfig
from sordino.core.errors import PlanError
from sordino.privacy import noise
from sordino.privacy.plan import AdaptiveClip

LORA = LoraConfig(rank=4, alpha=8.0)
MANIFEST = adapter_manifest(tiny.CONFIG, LORA)
RULE = AdaptiveClip(start=0.05, smallest=0.005, quantile=0.5, rate=0.2, count_noise_multiplier=5.0)
RECORDS = [tiny.record(12, 1), tiny.record(9, 2), tiny.record(9, 3), tiny.record(20, 4, masked=11)]
EXTRA = {"ordinary": tiny.record(12, 50), "short": tiny.record(2, 51), "long": tiny.record(90, 52)}


def adapter(dtype=torch.float32):
    return LoraAdapter(
        tiny.adapter_tensors(MANIFEST),
        scale=2.0,
        trained=trained_manifest(MANIFEST, "fedit", 1).names,
        dtype=dtype,
    )


def noised(folder, records, monkeypatch, micro_batch):
    """Everything that a real step puts under the noise, and the noise's standard deviation."""
    seen, honest = [], noise.release_on_grid

    def noting(total, *, step, scale, source):
        seen.append((np.array(total), scale * step))
        return honest(total, step=step, scale=scale, source=source)

    opened = mechanism(folder, Still(), clip_norm=0.5, divisor=3.0, adaptive=RULE)
    own = adapter(torch.float64)
    inner = torch.optim.SGD(list(own.parameters.values()), lr=1.0)
    optimizer = PlanOptimizer(inner, opened, Observations())
    chosen = [records[i] for i in opened.sample(len(records))]
    with monkeypatch.context() as patch:
        patch.setattr(noise, "release_on_grid", noting)
        size = StepSize(tokens=0, recompute=False)
        train._step(tiny.decoder(), own, optimizer, chosen, micro_batch, size, torch.float64)
    ((total, std),) = seen
    return total, std


@pytest.mark.parametrize("micro_batch", [1, 8])
@pytest.mark.parametrize("kind", EXTRA)
def test_one_record_moves_gradients_and_count_by_what_is_noised(
    tmp_path, monkeypatch, kind, micro_batch
):
    with_it, std = noised(tmp_path, [*RECORDS, EXTRA[kind]], monkeypatch, micro_batch)
    without, _ = noised(tmp_path, RECORDS, monkeypatch, micro_batch)
    moved = float(np.linalg.norm(with_it - without))
    made = plan(clip_norm=0.5, divisor=3.0, adaptive=RULE)
    bound = made.sensitivity(MANIFEST.parameter_count, RULE.start)
    assert 0 < moved <= bound < 1.03 * RULE.start
    assert std >= made.noise_multiplier * bound
    assert abs(with_it[-1]) > 0  # the count is there


def plainly(metric, own):
    """Each record by itself, the logits in full."""
    decoder, values = tiny.decoder(), []
    for record in RECORDS:
        batch = train.make_batch([record])
        hidden = decoder.hidden(batch.ids, batch.packing, linears=own.linears)[batch.rows]
        logits = hidden @ decoder.head.tile(0, decoder.head.rows, hidden.dtype).t()
        if metric == "accuracy":
            values.append((logits.argmax(1) == batch.targets).double().mean())
        else:
            values.append(torch.nn.functional.cross_entropy(logits, batch.targets))
    return [float(value.detach()) for value in values]


@pytest.mark.parametrize("metric", ["loss", "accuracy"])
def test_a_metric_is_of_each_record_by_itself(metric):
    own = adapter()
    found = record_values(metric, tiny.decoder(), own, RECORDS, micro_batch=3)
    assert found == pytest.approx(plainly(metric, own), rel=1e-5)
    alone = record_values(metric, tiny.decoder(), own, RECORDS[1:2], micro_batch=3)
    assert alone == pytest.approx(found[1:2], rel=1e-5)
    assert record_values(metric, tiny.decoder(), own, []).shape == (0,)


def test_the_first_choice_is_the_largest_logit_over_all_tiles(monkeypatch):
    head = tiny.decoder().head
    hidden = torch.randn(50, head.columns, generator=torch.Generator().manual_seed(0))
    expected = (hidden @ head.tile(0, head.rows, hidden.dtype).t()).argmax(1)
    for tile in (7, 101, 8192):
        size = tile * len(hidden) * hidden.element_size()
        monkeypatch.setattr("sordino.client.model.loss.LOGITS_BYTES", size)
        assert torch.equal(first_choices(hidden, head), expected)


def test_no_other_metric():
    with pytest.raises(PlanError, match="loss or accuracy"):
        record_values("norm", tiny.decoder(), adapter(), RECORDS)
