"""Groups of devices for the status page: few, and each an upper bound for all of its devices."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from support.federation import make_plan

from sordino.server import spending
from sordino.server.status.spent import MOST_GROUPS, join

ANSWERED = st.dictionaries(
    st.dictionaries(st.sampled_from("ab"), st.integers(1, 40), min_size=1).map(
        lambda counts: tuple(sorted(counts.items()))
    ),
    st.integers(1, 50),
    min_size=1,
    max_size=40,
)


@given(ANSWERED)
def test_no_device_is_left_out_and_none_is_above_its_group(
    counted: dict[tuple[tuple[str, int], ...], int],
) -> None:
    groups = join(counted)
    assert len(groups) <= MOST_GROUPS
    assert sum(devices for _, devices, _ in groups) == sum(counted.values())
    keys = sorted(counted, key=lambda key: (sum(number for _, number in key), key))
    for bound, devices, fewest in groups:
        part, held = [], 0
        while held < devices:
            part.append(keys.pop(0))
            held += counted[part[-1]]
        assert held == devices
        assert fewest == min(sum(number for _, number in key) for key in part)
        for key in part:
            assert not Counter(dict(key)) - Counter(dict(bound))
    assert keys == []


def test_few_are_left_as_they_are() -> None:
    counted = {(("a", number),): number for number in range(1, MOST_GROUPS + 1)}
    assert join(counted) == [(key, counted[key], key[0][1]) for key in counted]


def test_rounds_under_two_plans_are_added_up() -> None:
    one = make_plan().canonical()
    other = make_plan(rounds=9, noise_multiplier=2.0).canonical()
    both = spending.of_rounds(((one, 2), (other, 3)), "both")
    alone = [spending.of_rounds(((one, 2),), "a"), spending.of_rounds(((other, 3),), "b")]
    assert max(each.epsilon_pld for each in alone) < both.epsilon_pld
    assert both.epsilon_pld < sum(each.epsilon_pld for each in alone)
    assert both.user_epsilon == float("inf")
