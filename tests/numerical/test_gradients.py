"""Per-record gradients and the clipped sum equal a plain one-record-at-a-time computation."""

import numpy as np
import pytest
import torch
from support import tiny

from sordino.client.batches import make_batch, micro_batches
from sordino.client.lora import LoraAdapter
from sordino.client.train import backward, evaluate, record_norms
from sordino.core.adapters import adapter_manifest, trained_manifest
from sordino.core.config import ATTENTION, MLP, LoraConfig

SCALE = 2.0
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
# ordinary, padded, very long, of one prediction, with a masked prompt
RECORDS = [
    tiny.record(12, 1),
    tiny.record(5, 2),
    tiny.record(100, 3),
    tiny.record(3, 4),
    tiny.record(20, 5, masked=12),
]


def setting(targets=ATTENTION + MLP, aggregation="ffa", round_number=1):
    manifest = adapter_manifest(tiny.CONFIG, LoraConfig(rank=4, alpha=8.0, targets=targets))
    trained = trained_manifest(manifest, aggregation, round_number).names
    return tiny.decoder(), tiny.adapter_tensors(manifest), trained


def reference(base, tensors, trained):
    return [tiny.plain_gradients(base, tensors, trained, r, SCALE) for r in RECORDS]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("aggregation", "round_number", "targets"),
    [
        ("ffa", 1, ATTENTION + MLP),
        ("rolora", 2, ATTENTION + MLP),
        ("fedit", 1, ATTENTION + MLP),
        ("fedit", 1, ATTENTION),
        ("fedit", 1, MLP),
    ],
)
def test_per_record_gradients(aggregation, round_number, targets, dtype, recompute):
    base, tensors, trained = setting(targets, aggregation, round_number)
    adapter = LoraAdapter(tensors, scale=SCALE, trained=trained, dtype=dtype)
    losses = backward(base, adapter, RECORDS, recompute=recompute, dtype=dtype)
    assert set(adapter.parameters) == set(trained)
    for i, (loss, gradients) in enumerate(reference(base, tensors, trained)):
        assert losses[i].item() == pytest.approx(loss, rel=TOLERANCE[dtype])
        whole = torch.cat([g.flatten() for g in gradients.values()]).norm()
        for name, parameter in adapter.parameters.items():
            gap = (parameter.grad_sample[i].double() - gradients[name]).norm()
            # A tensor whose true gradient is almost nothing is held to the record's whole norm.
            assert gap <= TOLERANCE[dtype] * max(gradients[name].norm(), 1e-2 * whole), name


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_micro_batches_give_the_same_gradients(size):
    base, tensors, trained = setting()
    whole = LoraAdapter(tensors, scale=SCALE, trained=trained, dtype=torch.float64)
    backward(base, whole, RECORDS, dtype=torch.float64)
    adapter = LoraAdapter(tensors, scale=SCALE, trained=trained, dtype=torch.float64)
    for part in micro_batches(RECORDS, size):
        assert len(part) <= size
        backward(base, adapter, part, dtype=torch.float64)
        for name, parameter in adapter.parameters.items():
            for sample, one in zip(parameter.grad_sample, part, strict=True):
                index = next(i for i, r in enumerate(RECORDS) if r is one)
                other = whole.parameters[name].grad_sample[index]
                torch.testing.assert_close(sample, other, rtol=1e-10, atol=1e-13)


def test_summed_mode_is_the_sum_of_the_records():
    base, tensors, trained = setting(aggregation="fedit")
    single = LoraAdapter(tensors, scale=SCALE, trained=trained, dtype=torch.float64)
    backward(base, single, RECORDS, dtype=torch.float64)
    summed = LoraAdapter(tensors, scale=SCALE, trained=trained, dtype=torch.float64)
    summed.tape.per_record = False
    for part in micro_batches(RECORDS, 2):
        backward(base, summed, part, dtype=torch.float64)
    for name, parameter in summed.parameters.items():
        total = single.parameters[name].grad_sample.sum(0)
        torch.testing.assert_close(parameter.grad, total, rtol=1e-10, atol=1e-13)


def test_norms_are_over_the_whole_record():
    generator = torch.Generator().manual_seed(0)
    samples = [torch.randn(3, 50, generator=generator), torch.randn(3, 7, generator=generator)]
    expected = torch.cat(samples, dim=1).double().norm(dim=1)
    torch.testing.assert_close(record_norms(samples), expected)


def test_evaluation_counts_only_targets_and_keeps_the_order():
    base, tensors, _ = setting()
    adapter = LoraAdapter(tensors, scale=SCALE)
    rows = evaluate(base, adapter, RECORDS, micro_batch=2)
    for (loss, _), row, one in zip(
        reference(base, tensors, list(tensors)[:1]), rows, RECORDS, strict=True
    ):
        assert row[1] == one.targets_mask[1:].sum()
        assert row[0] / row[1] == pytest.approx(loss, rel=1e-5)


def test_a_batch_names_the_rows_that_predict():
    first, second = tiny.record(4, 1), tiny.record(6, 2, masked=3)
    batch = make_batch([first, second])
    assert batch.packing.lengths == (3, 5)
    assert batch.rows.tolist() == [0, 1, 2, 5, 6, 7]
    assert batch.targets.tolist() == [*first.ids[1:], *second.ids[3:]]
    assert batch.owners.tolist() == [0, 0, 0, 1, 1, 1]
    assert np.array_equal(batch.ids.numpy(), [*first.ids[:-1], *second.ids[:-1]])
