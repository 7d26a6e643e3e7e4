"""Further views of a record: what is left out, what is replaced, and what never changes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tiny

from sordino.client.batches import (
    View,
    Viewed,
    make_batch,
    micro_batches,
    token_count,
    views_of,
)
from sordino.client.views import cut, dropped, with_views
from sordino.core.config import TrainConfig
from sordino.privacy.noise import seeded_source


def words(seed=0):
    return seeded_source(seed, "views").coins


def highest(size):
    """Words of ones: every coin as large as it gets."""
    return np.full(size, 2**64 - 1, np.uint64)


records = st.builds(
    lambda length, masked, seed: tiny.record(length, seed, masked=min(masked, length - 1)),
    st.integers(2, 40),
    st.integers(0, 39),
    st.integers(0, 9),
)


@given(records, st.integers(2, 6), st.floats(0, 0.99), st.floats(0, 0.99), st.integers(0, 99))
@settings(max_examples=150, deadline=None)
def test_a_view_is_made_of_its_own_record_alone(record, views, cut_part, drop_part, seed):
    train = TrainConfig(views=views, view_cut=cut_part, view_dropout=drop_part)
    (viewed,) = with_views([record], train, words(seed))
    whole, *further = views_of(viewed)
    assert len(further) == views - 1
    assert np.array_equal(whole.inputs, record.ids[:-1])
    assert np.array_equal(whole.targets, record.ids[1:])
    assert np.array_equal(whole.counted, record.targets_mask[1:])
    for view in further:
        assert view.counted.any()
        assert len(view.inputs) == len(view.targets) == len(view.counted)
        assert view.inputs[0] == whole.inputs[0]
        assert set(view.inputs) <= set(whole.inputs)
        # What is predicted is the end of what the record predicts, and counts where it counted.
        rest = len(view.inputs) - 1
        assert np.array_equal(view.targets[1:], whole.targets[len(whole.targets) - rest :])
        assert np.array_equal(view.counted[1:], whole.counted[len(whole.counted) - rest :])
        assert not view.counted[0] or whole.counted[0]


def test_another_record_changes_nothing_in_a_record_s_views():
    """Views may not couple records: given the same coins, a record's are the same beside any."""
    train = TrainConfig(views=3)
    one, two = tiny.record(12, 1), tiny.record(12, 2)
    first = with_views([one, two], train, words())[0]
    again = with_views([one, tiny.record(12, 3)], train, words())[0]
    for a, b in zip(views_of(first), views_of(again), strict=True):
        assert np.array_equal(a.inputs, b.inputs)


def test_dropout_replaces_about_the_part_that_was_asked_for():
    view = View(
        np.arange(20_000, dtype=np.int32), np.zeros(20_000, np.int32), np.ones(20_000, bool)
    )
    changed = dropped(view, 0.2, words()).inputs != view.inputs
    assert abs(changed.mean() - 0.2) < 5 * np.sqrt(0.2 * 0.8 / 20_000)
    assert dropped(view, 0.0, words()) is view


@pytest.mark.parametrize(("part", "rows"), [(0.5, 6), (0.99, 2), (0.0, 11), (0.05, 11)])
def test_a_cut_takes_at_most_its_part_and_leaves_something_to_predict(part, rows):
    (view,) = views_of(tiny.record(12, 1))
    shortest = cut(view, part, highest)
    assert len(shortest.inputs) == rows
    if rows < 11:
        assert not shortest.counted[0]
    assert cut(view, part, lambda n: np.zeros(n, np.uint64)) is view


def test_cuts_are_spread_evenly():
    (view,) = views_of(tiny.record(11, 1))
    draw = words()
    lengths = [len(cut(view, 0.5, draw).inputs) for _ in range(3000)]
    values, counts = np.unique(lengths, return_counts=True)
    assert values.tolist() == [5, 6, 7, 8, 9, 10]
    assert abs(counts / 3000 - 1 / 6).max() < 5 * np.sqrt(1 / 6 * 5 / 6 / 3000)


def test_one_view_is_the_record_and_takes_no_coin():
    def refuse(size):
        raise AssertionError

    chosen = [tiny.record(5, 1)]
    assert with_views(chosen, TrainConfig(), refuse) == chosen


def test_a_batch_of_views_is_one_run_of_rows_for_each_record():
    plain = tiny.record(5, 1)
    viewed = Viewed(views_of(tiny.record(4, 2)) + views_of(tiny.record(7, 3)))
    batch = make_batch([viewed, plain])
    assert batch.packing.lengths == (3, 6, 4)
    assert batch.views == (2, 1)
    assert (batch.records, batch.sequences) == (2, 3)
    assert batch.bounds == [(0, 9), (9, 13)]
    assert batch.owners.tolist() == [0] * 3 + [1] * 6 + [2] * 4
    assert token_count(viewed) == 9


def test_micro_batches_count_views_and_never_split_a_record():
    train = TrainConfig(views=3)
    chosen = with_views([tiny.record(6 + i, i) for i in range(5)], train, words())
    for size, wanted in ((1, [1] * 5), (3, [1] * 5), (6, [2, 2, 1]), (100, [5])):
        parts = micro_batches(chosen, size)
        assert [len(part) for part in parts] == wanted
        assert {id(r) for part in parts for r in part} == {id(r) for r in chosen}
    assert micro_batches([], 4) == []
