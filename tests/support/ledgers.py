"""Ledgers for tests: filled ones, exports of them, caps that count."""

import multiprocessing
from datetime import UTC, datetime

from sordino.core.errors import SordinoError
from sordino.privacy.accounting import UserGaussian, event_fields
from sordino.privacy.claims import Facts, make_claim
from sordino.privacy.ledger import Ledger, Limit, against, export_ledgers
from sordino.privacy.noise import SYSTEM_LABEL
from sordino.privacy.plan import Plan


def make_plan(**changes):
    values = {
        "run_id": "run-1",
        "rounds": 1000,
        "steps_per_round": 2,
        "sampling_rate": 0.5,
        "noise_multiplier": 1.5,
        "clip_norm": 2.0,
        "divisor": 4.0,
        "delta": 1e-5,
    }
    return Plan(**{**values, **changes})


def claimed(folder, rounds=3, **plan):
    """The claim of a run whose every round was charged and released."""
    ledger = filled(folder / "claimed.db", rounds, rounds=rounds, **plan)
    return make_claim(
        make_plan(rounds=rounds, **plan), ledger.path, Facts(noise_source=SYSTEM_LABEL)
    )


class UserPlan:
    """As the ledger sees a plan that protects users."""

    run_id, rounds, unit, neighbouring = "run-u", 1000, "user", "add-or-remove-one"
    sha256 = "ab" * 32

    def event_fields(self):
        return event_fields(UserGaussian(noise_multiplier=2.0, steps=1))


def clock():
    return datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)


def digest(number):
    return f"{number:064x}"


def filled(path, count=3, client="client-1", first=1, **plan):
    """A ledger whose rounds are all released."""
    ledger = Ledger(path, client, now=clock)
    for number in range(first, first + count):
        charge = ledger.charge(make_plan(**plan), number, "data")
        ledger.release(charge.number, digest(number))
    return ledger


def exported(folder, ledger, name="ledger.jsonl"):
    path = folder / name
    export_ledgers([ledger.path], path)
    return path


class RefusedError(SordinoError):
    """What a cap of these tests says."""


def at_most(count, **fields):
    """A cap on the number of charges that add up."""

    def would_allow(charged, new):
        so_far = against(charged, new)
        if len(so_far) + 1 > count:
            raise RefusedError(f"{len(so_far)} of {count} are spent")

    return Limit(would_allow=would_allow, **fields)


def run_all(target, arguments):
    """Run a function in forked processes, all at once; returns their exit codes."""
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=target, args=each) for each in arguments]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    return [worker.exitcode for worker in workers]
