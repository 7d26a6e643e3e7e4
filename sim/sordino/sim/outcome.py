"""From what a simulation left on disk to the figures of its report."""

from __future__ import annotations

import datetime
import importlib.metadata
import math
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sordino.client.opinion import opacus_epsilons
from sordino.core.config import ExperimentConfig
from sordino.privacy import accounting
from sordino.privacy.noise import SEEDED_LABEL, SYSTEM_LABEL
from sordino.privacy.plan import AnyPlan, CentralPlan, NoPrivacyPlan, guarantee
from sordino.server import report as rep
from sordino.server.plans import read_metric_plan
from sordino.sim import looks, population
from sordino.sim.charges import Charges, charges_of
from sordino.sim.evaluation import Losses
from sordino.sim.folder import NO_FEDERATION, NO_PRIVACY, PRIVATE, RunFolder
from sordino.sim.variants import observations, read_plan

_PACKAGES = ("sordino", "flwr", "torch", "opacus", "dp-accounting", "numpy")
_WHOLE_USER = (
    "each client's records are one user's, and the plan doesn't limit how many there are; "
    "a bound for a whole user needs such a limit, or noise scaled to a user's whole update"
)
_ONE_RECORD = (
    "the bound for a user covers all of their records at once, so each single one at that same ε, "
    "against the user's absence; one record added to or removed from a user who takes part all the "
    "same moves the user's clipped update by at most 2C, which is this larger ε, without credit "
    "for any sampling of users"
)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Everything that a report is made of, beside what lies in the run's folder."""

    config: ExperimentConfig
    run: RunFolder
    base_name: str
    base_sha256: str
    quantization: str
    users: tuple[str, ...]
    records: tuple[int, ...]
    before: Losses
    after: Mapping[str, Losses]
    known: Mapping[str, rep.UtilityFigures]
    main: str

    def states(self) -> list[Path]:
        """The clients' own folders."""
        root = self.run.state(self.main)
        return [population.state_dir(root, i) for i in range(len(self.users))]

    def seen(self) -> list[list[dict[str, Any]]]:
        """What each client's device noted, a list of rounds a client."""
        return [observations(state) for state in self.states()]


def make_report(outcome: Outcome) -> rep.RunReport:
    """Assemble the report; every ε is recomputed from the ledgers."""
    plan = read_plan(outcome.run, outcome.main)
    rounds = outcome.run.rounds(outcome.main)
    seen = outcome.seen()
    charges = charges_of(plan, outcome.run, outcome.users, outcome.states(), seen)
    secret = rep.PRIVATE_TO_A_COORDINATOR if isinstance(plan, CentralPlan) else ()
    return rep.RunReport(
        run=_run(outcome, len(rounds)),
        guarantee=_guarantee(outcome, plan, charges),
        noise=_noise(outcome, plan, rounds, seen),
        utility=_utility(outcome),
        leakage=rep.Leakage(),
        cost=_cost(rounds, seen),
        clients=_clients(outcome, plan, charges, seen),
        rounds=tuple(_round(entry, plan, outcome) for entry in rounds),
        metrics=looks.metric_rows(outcome.run, outcome.main),
        simulation_only=(*rep.KNOWN_TO_A_SIMULATION, *secret),
    )


def _run(outcome: Outcome, rounds: int) -> rep.Run:
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    started = datetime.datetime.fromtimestamp(
        (outcome.run.root / "config.toml").stat().st_mtime, datetime.UTC
    )
    return rep.Run(
        id=outcome.run.run_id,
        model=rep.RunModel(
            name=outcome.base_name, sha256=outcome.base_sha256, quantization=outcome.quantization
        ),
        # A report is published: no path of someone's disk.
        data=Path(outcome.config.data.source).name,
        clients=len(outcome.users),
        rounds=rounds,
        seed=outcome.config.seed,
        started_at=started.isoformat(timespec="seconds"),
        versions={"python": platform.python_version(), **versions},
    )


def _guarantee(outcome: Outcome, plan: AnyPlan, charges: Charges) -> rep.Guarantee:
    composition = f"all {plan.rounds} rounds of this run"
    metric = read_metric_plan(outcome.run.state(outcome.main))
    if metric is not None:
        composition += f", and {metric.rounds} looks at its {metric.metric}"
    claim = guarantee(plan, charges.worst, composition=composition)
    second = rep.SecondOpinion()
    if not isinstance(plan, NoPrivacyPlan):
        prv, rdp = opacus_epsilons(charges.opacus_steps, plan.delta)
        second = rep.SecondOpinion(opacus_prv=prv, opacus_rdp=rdp)
    asked = outcome.config.privacy
    solved = not isinstance(plan, NoPrivacyPlan) and asked.noise_multiplier is None
    return rep.Guarantee(
        trust=claim.trust,
        unit="user" if isinstance(plan, CentralPlan) else "record",
        epsilon=rep.Epsilon(
            pld=_finite(claim.epsilon_pld),
            rdp=_finite(claim.epsilon_rdp),
            target=asked.epsilon if solved else None,
        ),
        delta=claim.delta or None,
        neighbouring=claim.neighbouring,
        sampling=_sampling(plan),
        composition=claim.composition,
        accountant=claim.accountant,
        second_opinion=second,
        other=_other_unit(plan, claim),
    )


def _sampling(plan: AnyPlan) -> str:
    """The sampling that the accounting assumes."""
    if not isinstance(plan, CentralPlan):
        return plan.sampling
    if plan.sampling == "none":
        return "none (every user is asked in every round)"
    return "poisson (each user's own coin in every round, thrown in secret by the coordinator)"


def _other_unit(plan: AnyPlan, claim: accounting.Guarantee) -> rep.OtherUnit:
    if not isinstance(plan, CentralPlan):
        return rep.OtherUnit(unit="user", status="not bounded", reason=_WHOLE_USER)
    epsilon = _finite(claim.record_epsilon)
    return rep.OtherUnit(
        unit="record",
        status="not bounded" if epsilon is None else "bounded",
        reason=_ONE_RECORD,
        epsilon=epsilon,
        delta=None if epsilon is None else plan.delta,
    )


def _noise(
    outcome: Outcome,
    plan: AnyPlan,
    rounds: Sequence[Mapping[str, Any]],
    seen: list[list[dict[str, Any]]],
) -> rep.Noise:
    private = None if isinstance(plan, NoPrivacyPlan) else plan
    seeded = outcome.config.privacy.seeded_noise
    clipped, ratios = _noted(plan, rounds, seen)
    source = (SEEDED_LABEL if seeded else SYSTEM_LABEL) if private else "none"
    return rep.Noise(
        source=source,
        noise_multiplier=private.noise_multiplier if private else None,
        clip_norm=private.clip_norm if private else None,
        sampling_rate=plan.sampling_rate,
        steps=plan.rounds * (1 if isinstance(plan, CentralPlan) else plan.steps_per_round),
        clip_fraction=clipped if private else None,
        update_snr=statistics.median(ratios) if ratios else None,
    )


def _noted(
    plan: AnyPlan, rounds: Sequence[Mapping[str, Any]], seen: list[list[dict[str, Any]]]
) -> tuple[float | None, list[float]]:
    """The share of what was clipped, and signal over noise of each noised sum."""
    if not isinstance(plan, CentralPlan):
        ratios = [r for own in seen for entry in own for r in entry["signal_to_noise"]]
        return _clip_fraction([entry for own in seen for entry in own]), ratios
    shares = [r["clip_fraction"] for r in rounds if r["clip_fraction"] is not None]
    ratios = [r["update_snr"] for r in rounds if r["released"] and r["update_snr"] is not None]
    return statistics.fmean(shares) if shares else None, ratios


def _utility(outcome: Outcome) -> rep.Utility:
    sums, tokens = (np.concatenate(a) for a in (outcome.before.sums, outcome.before.tokens))

    def gain(name: str) -> rep.UtilityFigures | None:
        if name not in outcome.after:
            return outcome.known.get(name)
        rng = np.random.default_rng(outcome.config.seed)
        return rep.measured_gain(sums, np.concatenate(outcome.after[name].sums), tokens, rng=rng)

    return rep.Utility(
        private=gain(PRIVATE), no_privacy=gain(NO_PRIVACY), no_federation=gain(NO_FEDERATION)
    )


def _cost(rounds: Sequence[Mapping[str, Any]], seen: list[list[dict[str, Any]]]) -> rep.Cost:
    entries = [entry for client in seen for entry in client]
    seconds = sum(entry["seconds"] for entry in entries)
    peaks = [r["peak_rss_mb"] for r in rounds if r["peak_rss_mb"] is not None]
    joules = rounds[-1]["joules"] if rounds else None
    return rep.Cost(
        wall_s=sum(r["wall_s"] for r in rounds),
        bytes_up=sum(r["bytes_up"] for r in rounds),
        bytes_down=sum(r["bytes_down"] for r in rounds),
        peak_rss_mb=max(peaks, default=None),
        tokens_per_s=sum(entry["tokens"] for entry in entries) / seconds if seconds else None,
        energy=rep.Energy(joules=joules, source="unavailable" if joules is None else "measured"),
    )


def _clients(
    outcome: Outcome,
    plan: AnyPlan,
    charges: Charges,
    seen: list[list[dict[str, Any]]],
) -> tuple[rep.ClientFigures, ...]:
    private = None if isinstance(plan, NoPrivacyPlan) else plan
    by_record = private and private.unit == "record"
    last = outcome.after[outcome.main]
    return tuple(
        rep.ClientFigures(
            client=user,
            epsilon=_finite(charges.spent[i]) if private else None,
            noise_multiplier=private.noise_multiplier if private else None,
            records=outcome.records[i],
            clip_fraction=_clip_fraction(seen[i]) if by_record else None,
            loss_before=outcome.before.mean(i),
            loss_after=last.mean(i),
        )
        for i, user in enumerate(outcome.users)
    )


def _round(entry: Mapping[str, Any], plan: AnyPlan, outcome: Outcome) -> rep.RoundFigures:
    epsilon = None
    if not isinstance(plan, NoPrivacyPlan):
        metric = read_metric_plan(outcome.run.state(outcome.main))
        every = outcome.config.metrics.every
        events = looks.events_until(plan, metric, every, entry["round"])
        spent = accounting.epsilon_pld(events, plan.delta)
        epsilon = _finite(spent)
    return rep.RoundFigures(
        round=entry["round"],
        epsilon=epsilon,
        released=entry["released"],
        updates=entry["updates"],
        dropped=sum(entry["dropped"].values()),
        loss=entry["loss"],
        bytes_up=entry["bytes_up"],
        bytes_down=entry["bytes_down"],
        wall_s=entry["wall_s"],
        peak_rss_mb=entry["peak_rss_mb"],
    )


def _clip_fraction(entries: Sequence[Mapping[str, Any]]) -> float | None:
    sampled = sum(sum(entry["batch_sizes"]) for entry in entries)
    return sum(entry["clipped"] for entry in entries) / sampled if sampled else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
