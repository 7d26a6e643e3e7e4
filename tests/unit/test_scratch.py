"""Memory that is used again: what it gives is apart while it must be, and the same afterwards."""

import threading

import pytest
import torch

from sordino.client.model import scratch
from sordino.client.model.scratch import SLAB_BYTES, drop_scratch, keeping, kept


@pytest.fixture(autouse=True)
def own_slabs():
    drop_scratch()
    yield
    drop_scratch()


def filled(count, shape=(3, 5), dtype=torch.float32):
    made = [kept(shape, dtype) for _ in range(count)]
    for value, tensor in enumerate(made):
        tensor.fill_(value)
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_kept_in_one_block_is_apart_and_aligned(dtype):
    with keeping("batch"):
        made = filled(50, dtype=dtype)
    assert [t.unique().tolist() for t in made] == [[float(i)] for i in range(50)]
    assert all(t.data_ptr() % 64 == 0 and t.is_contiguous() for t in made)


def test_the_next_block_takes_the_same_memory_and_another_kind_does_not():
    with keeping("batch"):
        first = filled(1)[0]
        with keeping("layer"):
            inner = filled(1)[0]
        later = filled(1)[0]
    with keeping("batch"):
        again = filled(1)[0]
    assert again.data_ptr() == first.data_ptr()
    assert len({t.data_ptr() for t in (first, inner, later)}) == 3


def test_more_than_a_slab_and_one_larger_than_a_slab_fit():
    large = (SLAB_BYTES // 4 + 7,)
    with keeping("batch"):
        made = filled(3, large) + filled(5, (SLAB_BYTES // 16,))
    held = {t.untyped_storage().data_ptr() for t in made}
    assert len(held) == 5  # three of their own, and two that hold three and two of the others
    assert [t[0].item() for t in made] == [0, 1, 2, 0, 1, 2, 3, 4]


def test_outside_of_a_block_and_in_another_thread_memory_is_not_shared():
    with keeping("batch"):
        inside = filled(1)[0]
        found = []
        thread = threading.Thread(target=lambda: found.append(kept((3, 5), torch.float32)))
        thread.start()
        thread.join()
    outside = kept((3, 5), torch.float32)
    pointers = {t.untyped_storage().data_ptr() for t in (inside, outside, *found)}
    assert len(pointers) == 3
    assert scratch._held.taking is None
