"""The work of a real run in the durable rounds: the strategy's result, one release a charge."""

import secrets
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from support import fleets
from support.central import Still, make_central
from support.federation import (
    LORA,
    MANIFEST,
    TRAIN,
    filled,
    initial,
    make_plan,
    make_strategy,
    make_task,
    update_for,
)
from support.fleets import RUN, Clock, get, refusal, rows_of

from sordino.core import app as flower
from sordino.core.contract import (
    Artefact,
    SignedHead,
    decode_adapter,
    encode_update,
)
from sordino.core.errors import PlanError
from sordino.core.records import Receipt, Update
from sordino.core.wire import encode_update as encode_for_flower
from sordino.privacy.ledger.keys import LedgerKey
from sordino.server import fleet_rounds as fr
from sordino.server.release import Releases
from sordino.server.store import Accepted, Head, Round, Run, Task
from sordino.server.store.records import FINAL_ROUNDS

KEY = LedgerKey.generate()
PLAN = make_plan()


def head(entry="12"):
    receipt = Receipt(ledger_head=entry * 32, entry_index=4)
    signature = KEY.sign(receipt.ledger_head)
    return SignedHead(receipt=receipt, public_key=KEY.public, signature=signature)


def update(number, plan, tensors, signed=None):
    signed = signed or head()
    made = Update(
        run_id=plan.run_id,
        round=number,
        plan_sha256=plan.sha256,
        tensors=tensors,
        receipt=signed.receipt,
    )
    return encode_update(made, signed)


def start(made, folder, plan, **changes):
    return fleets.start(
        made,
        folder,
        trust=plan.trust,
        plan=plan.canonical(),
        manifest=MANIFEST.canonical(),
        rounds=plan.rounds,
        **changes,
    )


def work_of(made, **more):
    return fr.AdapterWork(
        read=made.artefacts.read, manifest=MANIFEST, lora=LORA, train=TRAIN, **more
    )


def tensors_after(made):
    data = made.artefacts.read(get(made, Run, RUN).adapter)
    return {**initial(), **decode_adapter(data, Artefact.of(data))}


def test_the_adapter_is_the_strategys_bit_for_bit(tmp_path):
    values = {"d0": 0.01, "d1": 0.3 / 7, "d2": -0.02}
    plan, strategy, expected = make_plan(rounds=2), make_strategy(make_plan(rounds=2)), initial()
    with fleets.fleet(tmp_path, devices=3) as made, flower.task_identity(run_id=1, node_id=1):
        work = work_of(made)
        start(made, tmp_path, plan)
        for number in (1, 2):
            fr.advance(made, work, RUN)
            order = sorted(values, reverse=number == 2)
            replies = []
            for place, message in enumerate(strategy.open_round(number, expected, [1, 2, 3])):
                flower.set_message_id(message, f"m{number}{place}")
                task = make_task(number, plan)
                tensors = filled(values[order[place]], number)
                for name in tensors:
                    tensors[name][0, 0] *= np.pi
                records = flower.to_records(encode_for_flower(update_for(task, tensors)))
                replies.append(type(message)(records, reply_to=message))
                name = order[-1 - place]
                mine = filled(values[name], number)
                for each in mine:
                    mine[each][0, 0] *= np.pi
                given = fleets.take(made, name)
                fleets.send(made, work, given, update(number, plan, mine))
            expected, _ = strategy.close_round(replies)
            fr.advance(made, work, RUN)
            after = tensors_after(made)
            assert all(after[name].tobytes() == expected[name].tobytes() for name in expected)
        assert {row.entry_index for row in rows_of(made, Accepted)} == {4}
        assert len(rows_of(made, Head)) == 3


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (update(1, PLAN, filled(0.01)) + b"\xe0\x03\x01", "unknown-field"),
        (update(2, PLAN, filled(0.01)), "wrong-round"),
        (update(1, make_plan(noise_multiplier=9.0), filled(0.01)), "wrong-plan"),
        (update(1, PLAN, filled(np.nan)), "not-finite"),
        (update(1, PLAN, filled(1e9)), "over-norm"),
        (update(1, PLAN, dict(list(filled(0.01).items())[1:])), "missing-tensor"),
        (update(1, PLAN, filled(0.01), replace(head(), signature="ab" * 64)), "wrong-receipt"),
    ],
)
def test_what_the_round_does_not_allow_is_refused(tmp_path, data, word):
    with fleets.fleet(tmp_path, devices=1) as made:
        work = work_of(made)
        start(made, tmp_path, PLAN)
        fr.advance(made, work, RUN)
        given = fleets.take(made, "d0")
        assert refusal(fleets.send, made, work, given, data) == word
        assert rows_of(made, Accepted) == []


def test_updates_of_nothing_leave_an_adapter_all_the_same(tmp_path):
    with fleets.fleet(tmp_path, devices=1) as made:
        work = work_of(made)
        start(made, tmp_path, PLAN)
        fr.advance(made, work, RUN)
        fleets.send(made, work, fleets.take(made, "d0"), update(1, PLAN, filled(0.0)))
        fr.advance(made, work, RUN)
        after = tensors_after(made)
        assert all((after[name] == tensor).all() for name, tensor in initial().items())


# --- central trust: charge, draw, keep, write down, in this order and once -----------------------


class Counted(Still):
    """Counts the draws of a round's noise, and draws something else each time."""

    def __init__(self, draws, number):
        self.draws, self.number = draws, number

    def rounded_gaussian(self, size, scale):
        self.draws.append(self.number)
        return np.full(size, secrets.randbelow(1000), np.int64)


class CrashError(BaseException):
    pass


BEFORE = ["reserve:written", "reserve:durable", "commit:written"]
LOST = ["commit:durable", "release:drawn"]
KEPT = ["release:kept", "released:written", "released:durable", "release:ready", "adapter:kept"]
KEPT += ["aggregate-round:written", "aggregate-round:durable", "publish-round:written"]


def first_round(made, work, plan, clock, folder):
    """Take the run through its first round, from wherever a crash left it."""
    if get(made, Run, RUN) is None:
        start(made, folder, plan, cohort=4, min_updates=4)
    fr.advance(made, work, RUN)
    if get(made, Round, RUN, 1).state in FINAL_ROUNDS:
        return
    for device in range(3):  # one never answers, which counts as zero
        given = fleets.take(made, f"d{device}")
        if given is not None:
            fleets.send(made, work, given, update(1, plan, filled(0.001)))
    clock.now += fleets.TIMEOUT_MS
    fr.advance(made, work, RUN)


@pytest.mark.parametrize("step", [*BEFORE, *LOST, *KEPT])
def test_a_crash_under_central_trust_never_draws_twice(tmp_path, step):
    plan, clock, draws, crashes = make_central(), Clock(), [], [step]
    folder = tmp_path / "central"

    def at(reached):
        if crashes and reached == crashes[0]:
            crashes.pop()
            raise CrashError(reached)

    def source(purpose, number):
        return Counted(draws, number)

    def releasing(of):
        return Releases(plan=of, folder=folder, source=source, at=at)

    for _ in range(2):  # the second time is after the crash
        with (
            suppress(CrashError),
            fleets.fleet(tmp_path, devices=4, clock=clock, at=at) as made,
        ):
            work = work_of(made, releasing=releasing)
            first_round(made, work, plan, clock, tmp_path)
            first, second = (get(made, Round, RUN, number) for number in (1, 2))
            after = made.artefacts.read(first.adapter_after) if first.adapter_after else None
    assert crashes == []
    assert second.state == "open"  # the run goes on
    assert draws == ([] if step == "commit:durable" else [1])
    releases = releasing(plan)
    settled = releases.settle(1, initial())
    if step in LOST:
        assert (first.state, first.reason) == ("failed", "release-lost")
        assert (settled.state, after) == ("abandoned", None)
    else:
        assert (first.state, settled.state) == ("published", "released")
        published = {**initial(), **decode_adapter(after, Artefact.of(after))}
        assert all((published[name] == settled.adapter[name]).all() for name in published)
    assert releases.ledger.find(RUN, 1).state == settled.state


def test_secret_coins_pick_the_cohort(tmp_path):
    plan = make_central(sampling="poisson", sampling_rate=0.5, population=8, cohort=4)
    with fleets.fleet(tmp_path, devices=8) as made:
        run = start(made, tmp_path, plan)
        fixed = Releases(plan=plan, folder=tmp_path / "central", source=lambda *_: Still())
        fr.advance(made, work_of(made, releasing=lambda of: fixed), RUN)
        assert len(rows_of(made, Task)) == 8
        secret = Releases(plan=plan, folder=tmp_path / "central")
        work = work_of(made, releasing=lambda of: secret)
        cohorts = {tuple(work.choose(run, 1, "abcdefgh", 8)) for _ in range(9)}
        assert len(cohorts) > 1
        with pytest.raises(PlanError, match="releasing"):
            work_of(made).choose(run, 1, "abcdefgh", 8)
