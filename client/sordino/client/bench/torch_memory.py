"""How much memory a step takes of torch's own allocator."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch.profiler import ProfilerActivity, profile


def torch_peak(step: Callable[[], object]) -> int:
    """Most bytes that torch's CPU allocator held during a step, over what it held before.

    Each allocation and release that torch's profiler reports is added up in order. Memory that is
    not torch's own (a mapped file, numpy's arrays) isn't in it.

    Args:
        step: Runs in this thread.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step()
    events = seen.profiler.kineto_results.events()
    return peak_of((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")


def peak_of(changes: Iterable[tuple[int, int]]) -> int:
    """The largest running sum of (time, bytes), at least 0.

    >>> peak_of([(3, -5), (1, 4), (2, 3)])
    7
    """
    held = peak = 0
    for _, change in sorted(changes, key=lambda c: c[0]):
        held += change
        peak = max(peak, held)
    return peak
