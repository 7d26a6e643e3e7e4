"""Mechanisms whose leak is known, at the level of scores, for tests of the audit."""

import numpy as np

from sordino.privacy.audit import (
    Attempt,
    Audit,
    Exposure,
    Extraction,
    Guessing,
    Identities,
    Inversion,
    Leak,
    Membership,
    Neighbours,
    Noise,
    OneRun,
    PromptLeakage,
    Stage,
    Suffix,
    TwoWorlds,
    Value,
    coins,
    commit,
    draw_contributions,
    draw_openings,
    encode_audit,
    measured,
    versions,
)
from sordino.privacy.claims import Facts, make_claim
from sordino.privacy.ledger import Ledger, export_ledgers
from sordino.privacy.noise import SYSTEM_LABEL
from sordino.privacy.plan import Plan

LEVEL = 0.05
RULE = Guessing(guessed_in=50, guessed_out=50)


def gaussian_scores(rng, tossed, sigma):
    """Inner products of one full-batch release with orthogonal canaries of norm C."""
    return tossed + sigma * rng.normal(size=tossed.size)


def one_run(scores, tossed, **changes):
    values = {
        "adversary": "coordinator",
        "scope": "round 1",
        "unit": "record",
        "delta": 1e-5,
        "scores": tuple(np.asarray(scores, dtype=float).tolist()),
        "coins": tuple(np.asarray(tossed).tolist()),
        "canaries": tuple(range(len(tossed))),
        "rules": (RULE,),
    }
    return OneRun(**{**values, **changes})


def private_plan():
    """Without sampling: its ε, about 1.9, takes no time to compute."""
    return Plan(
        run_id="run-1",
        rounds=3,
        steps_per_round=10,
        sampling_rate=1.0,
        noise_multiplier=12.0,
        clip_norm=1.0,
        divisor=130.0,
        delta=1e-5,
    )


def charged(folder, plan, clients=2):
    """Export the ledgers of clients that were charged for a whole run; returns the heads."""
    paths = []
    for number in range(clients):
        path = folder / f"client-{number}" / "ledger.db"
        ledger = Ledger(path, f"client-{number}")
        for index in range(1, plan.rounds + 1):
            ledger.charge(plan, index, f"data-{number}")
        paths.append(path)
    return export_ledgers(paths, folder / "ledger.jsonl")


def make_bundle(folder, *, leak=2.0, claimed=True):
    """Files of an audited run of 200 canaries, not signed yet; `leak` moves canaries' scores."""
    plan, bundle = private_plan(), folder / "bundle"
    bundle.mkdir()
    claim = None
    if claimed:
        charged(folder, plan)
        (folder / "ledger.jsonl").rename(bundle / "ledger.jsonl")
        (bundle / "plan.json").write_bytes(plan.canonical())
        claim = make_claim(plan, bundle / "ledger.jsonl", Facts(noise_source=SYSTEM_LABEL))
        (bundle / "claim.json").write_text(claim.to_json())
    (bundle / "config.toml").write_text("seed = 1\n")
    (bundle / "audit.json").write_bytes(encode_audit(make_audit(claim, leak)))
    return bundle


def make_audit(claim, leak):
    rng = np.random.default_rng(8)
    openings = draw_openings([f"canary {i}" for i in range(200)], rng.bytes)
    contributions = draw_contributions(200, rng.bytes)
    tossed = coins(openings, contributions)
    about = {} if claim is None else {"claimed_epsilon": claim.epsilon, "curve": claim.delta_curve}
    rule = (Guessing(guessed_in=50, guessed_out=50),)
    real = one_run(leak * tossed + rng.normal(size=200), tossed, rules=rule, **about)
    swapped = one_run(real.scores, tossed[::-1], rules=rule, **about)
    return Audit(
        run_id="run-1",
        entries=(
            measured("private", real),
            measured("private", swapped, control="swapped coins"),
            measured("private", Neighbours(what="records", moved=(0.5,), sensitivity=1.0)),
        ),
        commitments=commit(openings, contributions),
        openings=openings,
        contributions=contributions,
        context={"tier": "quick", "versions": versions()},
    )


def one_of_each():
    """A measure of every kind, small."""
    leaked = Leak(sentences=1.0, rouge_l=1.0, containment=1.0, fuzzy=100.0, secret=True)
    kept = Leak(sentences=0.0, rouge_l=0.25, containment=0.0, fuzzy=30.0, secret=False)
    attempts = tuple(
        Attempt(prompt=prompt, family="direct", leak=leaked, control=kept) for prompt in range(5)
    )
    value = {"attribute": "street", "candidates": 10, "extracted": False}
    tossed = np.arange(40) % 2 == 0
    scores = {"members": (3.0, 2.0, 4.5), "others": (1.0, 2.0)}
    lengths = {"members_length": (9, 9, 9), "others_length": (9, 9)}
    return (
        one_run(tossed + 0.0, tossed, rules=(Guessing(guessed_in=20, guessed_out=20),)),
        TwoWorlds(what="x", with_canary=(3.0, 4.0), without=(1.0, 2.0), threshold=2.5, delta=1e-5),
        Noise(what="x", squares=90.0, coordinates=100, deviation=1.0),
        Neighbours(what="x", moved=(0.5, 0.75), sensitivity=1.0),
        Membership(attack="loss", adversary="user", doubles=0, **scores, **lengths),
        Exposure(adversary="user", ranks=(1.0, 7.5), repetitions=(4, 0), space=9, exact=True),
        Extraction(
            adversary="user",
            scheme="greedy",
            suffixes=(
                Suffix(planted=True, tokens=4, greedy=4, log_probability=-0.5, draws=3, hits=1),
                Suffix(planted=False, tokens=4, greedy=0),
            ),
        ),
        Identities(
            adversary="user",
            values=(
                Value(planted=True, rank=1.0, reconstructed=True, **value),
                Value(planted=False, rank=4.0, reconstructed=False, **value),
            ),
        ),
        Inversion(
            what="x",
            matrix="A",
            adapter_rank=4,
            rows=4,
            columns=8,
            noise=0.0,
            distinct=2,
            singular_values=(2.0, 1.0, 1e-9, 0.0),
            present=(1e-6, 1e-5),
            absent=(0.5, 0.7, 0.9),
        ),
        PromptLeakage(
            target="system prompt",
            stages=(Stage(name="base", attempts=attempts), Stage(name="x", attempts=attempts)),
        ),
    )
