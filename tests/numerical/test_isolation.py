"""No record sees another: what lies beside or after a record in a batch never changes it.

A NaN is the sharpest probe: it spreads along every path by which a value travels, even through a
product with zero. A record that stays as it was, bit for bit, has no path from the broken one.
"""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import exact, tiny

from sordino.client.batches import make_batch, micro_batches

MODELS = ["llama-Q8_0", "gemma3-int8", "gpt2-Q4_0", "gpt_neox-int8"]
MIXED, EQUAL = (9, 30, 4, 17), (12, 12, 12, 12)  # with padding, where the engine pads, and without


@pytest.fixture(scope="module", params=MODELS)
def model(request, tmp_path_factory):
    return exact.open_model(tmp_path_factory.mktemp("model"), *request.param.split("-"))


def run(model, records, decoder=None, **settings):
    """Each record's loss and gradients, by name and the loss under ``loss``."""
    reference = model.reference("all")
    trained = exact.trained_names(model, reference, "fedit")
    losses, samples = exact.samples_of(
        decoder or model.decoder, reference, trained, records, **settings
    )
    return {"loss": losses, **samples}


def batch(lengths):
    return [tiny.record(length, seed) for seed, length in enumerate(lengths)]


@pytest.mark.parametrize(
    ("lengths", "recompute"), [(MIXED, False), (MIXED, True), (EQUAL, False)], ids=str
)
def test_a_nan_reaches_nobody_else(model, lengths, recompute):
    decoder = exact.poisoned(model.decoder)
    before = run(model, batch(lengths), decoder, recompute=recompute)
    for at in range(len(lengths)):
        records = batch(lengths)
        records[at] = exact.broken(lengths[at])
        after = run(model, records, decoder, recompute=recompute)
        others = [i for i in range(len(lengths)) if i != at]
        for name, value in after.items():
            assert not torch.isfinite(value[at]).any(), name
            assert torch.equal(value[others], before[name][others]), name


@pytest.mark.parametrize("dtype", exact.TOLERANCE)
@pytest.mark.parametrize("at", [0, 1, 3])
def test_another_neighbour_changes_nothing(model, at, dtype):
    """Of the same length, so of the same products: every other record is the same bit for bit."""
    one, other = batch(MIXED), batch(MIXED)
    other[at] = tiny.record(MIXED[at], 77)
    before, after = run(model, one, dtype=dtype), run(model, other, dtype=dtype)
    others = [i for i in range(len(MIXED)) if i != at]
    for name, value in after.items():
        assert not torch.equal(value[at], before[name][at])
        assert torch.equal(value[others], before[name][others]), name


@pytest.mark.parametrize("beside", [(), (2,), (60, 60), (3, 90, 9)])
def test_padding_changes_nothing(model, beside):
    """Alone, among shorter records and among far longer ones, first or last: to float64's error."""
    one = tiny.record(15, 5, masked=4)
    alone = run(model, [one])
    others = batch(beside)
    for at, records in ((0, [one, *others]), (len(others), [*others, one])):
        for name, value in run(model, records).items():
            gap = (value[at] - alone[name][0]).norm()
            assert gap <= 1e-12 * alone[name][0].norm(), name


def test_what_comes_after_the_last_counted_token_changes_nothing(model):
    """Causality within a record: uncounted tokens at its end are beyond every counted one."""
    short, long = tiny.record(10, 1), tiny.record(25, 2)
    long.ids[:10], long.targets_mask[10:] = short.ids, False
    one, other = run(model, [short]), run(model, [long])
    for name, value in one.items():
        assert (value[0] - other[name][0]).norm() <= 1e-12 * value[0].norm(), name


def test_the_order_in_a_batch_changes_nothing(model):
    order = [2, 0, 3, 1]
    before = run(model, batch(MIXED))
    after = run(model, [batch(MIXED)[i] for i in order])
    for name, value in before.items():
        for i, place in enumerate(order):
            assert (after[name][i] - value[place]).norm() <= 1e-12 * value[place].norm(), name


masks = st.integers(2, 12).flatmap(
    lambda n: st.lists(st.booleans(), min_size=n, max_size=n).filter(lambda m: any(m[1:]))
)


@given(st.lists(masks, min_size=1, max_size=6), st.integers(1, 7))
def test_each_record_has_a_row_of_its_own(drawn, size):
    """Whatever is packed: one row a record, whose predictions are its own counted tokens alone."""
    records = [
        tiny.Record(np.arange(len(mask), dtype=np.int32) + 100 * i, np.array(mask))
        for i, mask in enumerate(drawn)
    ]
    parts = micro_batches(records, size)
    assert sorted(id(r) for part in parts for r in part) == sorted(map(id, records))
    for part in parts:
        assert len(part) <= size
        made = make_batch(part)
        assert made.records == len(part)
        assert made.packing.lengths == tuple(len(r.ids) - 1 for r in part)
        for i, (one, (start, stop)) in enumerate(zip(part, made.packing.bounds, strict=True)):
            mine = made.owners == i
            assert made.ids[start:stop].tolist() == one.ids[:-1].tolist()
            assert made.targets[mine].tolist() == one.ids[1:][one.targets_mask[1:]].tolist()
            assert (made.ids[made.rows[mine]] + 1).tolist() == made.targets[mine].tolist()
            assert ((made.rows[mine] >= start) & (made.rows[mine] < stop)).all()
