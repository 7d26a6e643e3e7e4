"""Canaries: neither side chooses a coin, what was opened is what was published, and they train."""

import json
from dataclasses import replace

import numpy as np
import pytest

from sordino.client import canaries as device
from sordino.client.data.records import Record, place, split
from sordino.core.config import DataConfig
from sordino.core.errors import AuditError, DataError
from sordino.privacy import canaries as protocol
from sordino.privacy.audit import Guessing
from sordino.privacy.canaries import Canary, Opened, Published

RULES = (Guessing(guessed_in=2, guessed_out=2),)


def some(client, count):
    return [Canary(client=client, kind="random", text=f"{client} {i}") for i in range(count)]


@pytest.fixture
def agreed():
    """Two clients with canaries, of whom the second doesn't contribute."""
    drawn = protocol.draw([*some("ann", 64), *some("bob", 3)])
    published = protocol.publish("run-1", RULES, drawn)
    published, contributions = protocol.contribute(published, "ann")
    return drawn, published, contributions


def test_a_client_inserts_what_its_coins_say_and_anybody_can_check_it(agreed):
    drawn, published, contributions = agreed
    placed = protocol.place(published, "ann", drawn["ann"], contributions)
    opened = Opened(canaries=drawn, contributions={"ann": contributions})
    canaries, coins = protocol.open_all(published, opened)
    assert [c for c, coin in zip(canaries, coins, strict=True) if coin] == list(placed)
    assert {c.client for c in canaries} == {"ann"}  # bob gave no word: no canary of his counts
    assert 10 < coins.sum() < 54


def test_both_sides_make_the_coins():
    """Either side's fresh randomness tosses all coins anew: half of them change."""
    drawn = protocol.draw(some("ann", 400))
    published = protocol.publish("run-1", RULES, drawn)
    told, one = protocol.contribute(published, "ann")
    again, two = protocol.contribute(published, "ann")
    redrawn = protocol.draw(some("ann", 400))
    other = replace(protocol.publish("run-1", RULES, redrawn), contributions=told.contributions)
    sides = [(told, drawn, one), (again, drawn, two), (other, redrawn, one)]
    coins = [
        protocol.open_all(p, Opened(canaries=d, contributions={"ann": c}))[1] for p, d, c in sides
    ]
    for changed in coins[1:]:
        assert 140 < int((changed != coins[0]).sum()) < 260


def test_nothing_else_can_be_opened(agreed):
    drawn, published, contributions = agreed
    swapped = {"ann": (drawn["ann"][1], drawn["ann"][0], *drawn["ann"][2:])}
    with pytest.raises(AuditError, match="'ann': canary 0 is not the one"):
        protocol.open_all(published, Opened(canaries=swapped, contributions={"ann": contributions}))
    other = ("0" * 64, *contributions[1:])
    with pytest.raises(AuditError, match="'ann': contribution 0 is not the one"):
        protocol.open_all(published, Opened(canaries=drawn, contributions={"ann": other}))
    with pytest.raises(AuditError, match="'ann' was committed to and not opened"):
        protocol.open_all(published, Opened(canaries=drawn, contributions={}))
    with pytest.raises(AuditError, match=r"'bob'.*didn't contribute"):
        protocol.place(published, "bob", drawn["bob"], ("0" * 64,) * 3)


def test_a_client_draws_once_and_takes_no_other_clients_canaries(agreed):
    drawn, published, _ = agreed
    with pytest.raises(AuditError, match="hasn't contributed, got 'ann'"):
        protocol.contribute(published, "ann")
    stolen = protocol.publish("run-1", RULES, {"ann": drawn["bob"]})
    stolen, own = protocol.contribute(stolen, "ann")
    with pytest.raises(AuditError, match="a canary of 'bob' was handed to 'ann'"):
        protocol.place(stolen, "ann", drawn["bob"], own)


def test_what_is_published_survives_its_file_and_names_nothing(agreed):
    drawn, published, contributions = agreed
    text = published.to_json()
    assert Published.from_table(json.loads(text)) == published
    assert Published.from_table(json.loads(text)).sha256 == published.sha256
    for secret in (drawn["ann"][0].nonce, contributions[0], "ann 0"):
        assert secret not in text
        assert secret not in repr(Opened(canaries=drawn, contributions={"ann": contributions}))
    for broken in ({}, {**json.loads(text), "version": 2}, {**json.loads(text), "rules": 3}):
        with pytest.raises(AuditError):
            Published.from_table(broken)


@pytest.mark.parametrize(
    "change",
    [{"kind": "odd"}, {"text": ""}, {"client": ""}, {"repetitions": 0}, {"repetitions": 2}],
)
def test_a_canary_that_cannot_be_is_refused(change):
    with pytest.raises(AuditError):
        replace(some("ann", 1)[0], **change)


def test_placed_canaries_are_ordinary_records_that_train(tmp_path):
    data = DataConfig(share=0.5, held_out=0.3)
    texts = [text for text in (f"word {i}" for i in range(200)) if device.trains(text, data)]
    assert 40 < len(texts) < 100
    canaries = [
        Canary(client="ann", kind="exposed", text=text, repetitions=2) for text in texts[:3]
    ]
    device.keep_placed(tmp_path, canaries)
    records = device.placed_records(tmp_path, data)
    assert [r.text for r in records] == [t for t in texts[:3] for _ in range(2)]
    train, held = split(records, held_out=0.3, share=0.5)
    assert (train, held) == (records, ())
    assert (tmp_path / device.PLACED).stat().st_mode & 0o077 == 0


def test_an_owners_other_settings_are_named(tmp_path):
    """A canary that the owner's own cut would hold out has a coin and no effect: refused."""
    texts = [f"word {i}" for i in range(50)]
    held = [t for t in texts if place("held-out", Record(text=t)) < 0.5 * 2**64]
    device.keep_placed(tmp_path, [Canary(client="a", kind="random", text=t) for t in held])
    with pytest.raises(DataError, match=r"would not be trained on with held_out 0\.5"):
        device.placed_records(tmp_path, DataConfig(held_out=0.5))
    with pytest.raises(DataError, match="can't read the audit's canaries"):
        device.placed_records(tmp_path / "absent", DataConfig())


def test_a_coin_is_fair_whatever_the_canary():
    """4000 coins: the share of ones is within five standard deviations of a half."""
    drawn = protocol.draw(some("ann", 4000))
    published, own = protocol.contribute(protocol.publish("run-1", RULES, drawn), "ann")
    _, coins = protocol.open_all(published, Opened(canaries=drawn, contributions={"ann": own}))
    assert abs(float(np.mean(coins)) - 0.5) < 5 * 0.5 / 4000**0.5
