"""Coins that neither side could choose, and openings that are checked."""

import dataclasses
import hashlib

import numpy as np
import pytest

from sordino.core.errors import AuditError
from sordino.privacy.audit import (
    Commitments,
    Opening,
    canary_commitment,
    check_openings,
    coins,
    commit,
    contribution_commitment,
    draw_contributions,
    draw_openings,
)

COUNT = 1000


@pytest.fixture(scope="module")
def sides():
    return draw_openings([f"canary {i}" for i in range(COUNT)]), draw_contributions(COUNT)


def test_a_commitment_is_sha256_over_nonce_and_canary():
    opening = Opening(canary="the tide is late", nonce="ab" * 32)
    message = b"sordino audit canary v1\0" + bytes.fromhex("ab" * 32) + b"the tide is late"
    assert canary_commitment(opening) == hashlib.sha256(message).hexdigest()


def test_coins_are_fair_and_follow_from_both_sides(sides):
    openings, contributions = sides
    tossed = coins(openings, contributions)
    assert 400 < tossed.sum() < 600
    assert coins(openings, contributions).tolist() == tossed.tolist()
    others = coins(openings, draw_contributions(COUNT))
    again = coins(draw_openings([o.canary for o in openings]), contributions)
    for different in (others, again):  # either side alone makes each coin anew
        assert 400 < (different ^ tossed).sum() < 600


def test_what_was_committed_to_opens(sides):
    openings, contributions = sides
    published = commit(openings, contributions)
    tossed = check_openings(published, openings, contributions)
    assert tossed.tolist() == coins(openings, contributions).tolist()
    assert published.contributions[0] == contribution_commitment(contributions[0])


def test_another_canary_nonce_or_contribution_is_named(sides):
    openings, contributions = list(sides[0]), list(sides[1])
    published = commit(openings, contributions)
    for changed in (
        dataclasses.replace(openings[7], canary="another"),
        dataclasses.replace(openings[7], nonce="00" * 32),
    ):
        with pytest.raises(AuditError, match="canary 7 is not the one"):
            check_openings(published, [*openings[:7], changed, *openings[8:]], contributions)
    swapped = [contributions[1], contributions[0], *contributions[2:]]
    with pytest.raises(AuditError, match="contribution 0 is not the one"):
        check_openings(published, openings, swapped)
    with pytest.raises(AuditError, match="one length"):
        check_openings(published, openings[:-1], contributions)


def test_one_canary_can_t_have_two_coins():
    with pytest.raises(AuditError, match="different from each other"):
        draw_openings(["a", "a"])
    pair = [Opening(canary="a", nonce=byte * 32) for byte in ("00", "11")]
    contributions = draw_contributions(2)
    with pytest.raises(AuditError, match="every canary once"):
        check_openings(commit(pair, contributions), pair, contributions)


def test_the_root_names_all_of_them_in_order(sides):
    openings, contributions = sides
    published = commit(openings, contributions)
    turned = Commitments(
        canaries=published.canaries[::-1], contributions=published.contributions[::-1]
    )
    assert published.root != turned.root
    assert len(published.root) == 64


def test_nonces_are_fresh_and_never_printed(sides):
    openings, contributions = sides
    assert len({opening.nonce for opening in openings} | set(contributions)) == 2 * COUNT
    assert openings[0].nonce not in repr(openings[0])
    assert "canary 0" not in repr(openings[0])


@pytest.mark.parametrize(
    "nonce", ["", "ab", "AB" * 32, "zz" * 32, "ab" * 33, " " + "ab" * 31 + "a"]
)
def test_what_is_no_nonce_is_refused_without_being_quoted(nonce):
    with pytest.raises(AuditError, match="32 bytes") as caught:
        Opening(canary="a", nonce=nonce)
    assert not nonce or nonce not in str(caught.value)


def test_a_coin_can_t_be_told_from_the_commitments(sides):
    """The published bits agree with the coins as often as chance does."""
    published = commit(*sides)
    guess = np.array([int(h[:2], 16) & 1 for h in published.canaries], dtype=bool)
    assert 400 < (guess == coins(*sides)).sum() < 600
