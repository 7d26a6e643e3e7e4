"""Views are averaged before the clip: exactly the mean gradient, and one record's sensitivity."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tiny
from support.rounds import Still, mechanism, plan

from sordino.client import train
from sordino.client.batches import Batch, View, Viewed, views_of
from sordino.client.budget import StepSize
from sordino.client.lora import LoraAdapter
from sordino.client.train import Observations, PlanOptimizer, backward
from sordino.client.views import with_views
from sordino.core.adapters import adapter_manifest, trained_manifest
from sordino.core.config import LoraConfig, TrainConfig
from sordino.privacy.noise import seeded_source

C = 0.05
DIVISOR = 3.0
MANIFEST = adapter_manifest(tiny.CONFIG, LoraConfig(rank=4, alpha=8.0))
RECORDS = [tiny.record(12, 1), tiny.record(9, 2), tiny.record(30, 3), tiny.record(20, 4, masked=11)]
EXTRA = tiny.record(25, 50)


def adapter(aggregation="fedit"):
    return LoraAdapter(
        tiny.adapter_tensors(MANIFEST),
        scale=2.0,
        trained=trained_manifest(MANIFEST, aggregation, 1).names,
        dtype=torch.float64,
    )


def viewed(records, views, seed=0, **settings):
    """Records with views; a record's views depend on its own seed, whichever others there are."""
    train_config = TrainConfig(views=views, **settings)
    return [
        with_views([record], train_config, seeded_source(seed, str(record.ids.tolist())).coins)[0]
        for record in records
    ]


def gradients(records, aggregation="fedit", recompute=False):
    """Each record's gradient, flat: float64[records, size]."""
    trained = adapter(aggregation)
    backward(tiny.decoder(), trained, records, recompute=recompute, dtype=torch.float64)
    return torch.cat([p.grad_sample.flatten(1) for p in trained.parameters.values()], dim=1)


@given(
    views=st.integers(2, 5),
    cut=st.floats(0, 0.9),
    dropout=st.floats(0, 0.9),
    aggregation=st.sampled_from(["ffa", "fedit"]),
    recompute=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_a_record_s_gradient_is_the_mean_of_its_views(
    views, cut, dropout, aggregation, recompute, seed
):
    several = viewed(RECORDS, views, seed, view_cut=cut, view_dropout=dropout)
    together = gradients(several, aggregation, recompute)
    for gradient, record in zip(together, several, strict=True):
        singles = [gradients([Viewed((view,))], aggregation)[0] for view in record.views]
        mean = torch.stack(singles).mean(0)
        assert (gradient - mean).norm() <= 1e-12 * mean.norm()


def test_the_same_view_many_times_is_the_record():
    (whole,) = views_of(RECORDS[0])
    many, one = gradients([Viewed((whole,) * 4)])[0], gradients([RECORDS[0]])[0]
    assert (many - one).norm() <= 1e-12 * one.norm()


def clipped_sum(folder, records, micro_batch=8, clip_norm=C):
    """What a step releases, times the public divisor, without its noise."""
    trained = adapter()
    opened = mechanism(folder, Still(), clip_norm=clip_norm, divisor=DIVISOR)
    inner = torch.optim.SGD(list(trained.parameters.values()), lr=1.0)
    optimizer = PlanOptimizer(inner, opened, Observations())
    before = {n: p.detach().clone() for n, p in trained.parameters.items()}
    opened.sample(len(records))
    size = StepSize(tokens=0, recompute=False)
    train._step(tiny.decoder(), trained, optimizer, records, micro_batch, size, torch.float64)
    moved = [(before[n] - p.detach()).flatten() for n, p in trained.parameters.items()]
    return torch.cat(moved) * DIVISOR


@pytest.mark.parametrize("views", [2, 4])
@pytest.mark.parametrize("micro_batch", [1, 3, 64])
def test_a_record_with_views_moves_the_sum_by_at_most_c(tmp_path, views, micro_batch):
    others, extra = viewed(RECORDS, views), viewed([EXTRA], views)
    without = clipped_sum(tmp_path, others, micro_batch)
    moved = float((clipped_sum(tmp_path, [*others, *extra], micro_batch) - without).norm())
    assert moved <= plan(clip_norm=C).sensitivity(MANIFEST.parameter_count)
    assert moved == pytest.approx(C, rel=1e-3)  # the gradient is longer: the bound is reached


def test_views_that_are_clipped_as_records_are_caught(tmp_path):
    """The wrong way: each view its own record. One record then moves the sum by up to K times C."""
    others, (extra,) = viewed(RECORDS, 4), viewed([EXTRA], 4)
    apart = [Viewed((view,)) for view in extra.views]
    moved = clipped_sum(tmp_path, [*others, *apart]) - clipped_sum(tmp_path, others)
    assert float(moved.norm()) > 2 * plan(clip_norm=C).sensitivity(MANIFEST.parameter_count)


def test_micro_batches_do_not_change_the_sum(tmp_path):
    several = viewed([*RECORDS, EXTRA], 3)
    reference = clipped_sum(tmp_path, several, 64)
    for micro_batch in (1, 2, 6):
        other = clipped_sum(tmp_path, several, micro_batch)
        torch.testing.assert_close(other, reference, rtol=1e-9, atol=1e-12)


def test_a_view_that_is_not_finite_takes_its_record_out_and_no_other(tmp_path, monkeypatch):
    others, (extra,) = viewed(RECORDS, 2), viewed([EXTRA], 2)
    honest = Batch.record_means

    def poisoned(self, losses):
        whole = len(EXTRA.ids) - 1  # the extra record's first view, and no other
        factors = [torch.nan if length == whole else 1.0 for length in self.packing.lengths]
        return honest(self, losses * torch.tensor(factors))

    lengths = [len(view.inputs) for record in others for view in record.views]
    assert len(EXTRA.ids) - 1 not in lengths
    without = clipped_sum(tmp_path, others)
    monkeypatch.setattr(Batch, "record_means", poisoned)
    torch.testing.assert_close(clipped_sum(tmp_path, [*others, extra]), without)


def test_a_loss_over_all_views_tokens_would_be_another_mean():
    """The mean over views weighs a short view as much as a long one, as the definition says."""
    (whole,) = views_of(EXTRA)
    short = View(whole.inputs[:3], whole.targets[:3], whole.counted[:3])
    both = gradients([Viewed((whole, short))])[0]
    singles = gradients([Viewed((whole,)), Viewed((short,))])
    counts = np.array([whole.counted.sum(), short.counted.sum()])
    by_token = (torch.from_numpy(counts / counts.sum())[:, None] * singles).sum(0)
    assert (both - singles.mean(0)).norm() < 1e-12 * both.norm()
    assert (both - by_token).norm() > 0.1 * both.norm()
