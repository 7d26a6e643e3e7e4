"""Does an audit on this installation catch what it should? Known faults, each with its adversary.

Every fault is one that would make a claim of ε ≤ 1 false. It is put into a round of `pocket`'s real
training and looked at by the adversary that is designed for it; then the same adversary looks at
the real mechanism, and may not raise an alarm. What is released here are canaries and nothing else.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from sordino.client.data.records import Record
from sordino.client.data.tokens import TokenizerFile, TokenRecord
from sordino.client.model.store import BaseModel, cache_root
from sordino.client.probe import alignment, flat, record_gradients
from sordino.client.session import warm_base
from sordino.client.train import Mechanism, train_round
from sordino.core.adapters import adapter_manifest, initial_adapter, trained_manifest
from sordino.core.config import (
    LoraConfig,
    ModelConfig,
    PerformanceConfig,
    PrivacyConfig,
    TrainConfig,
)
from sordino.privacy import accounting
from sordino.privacy.audit import Guessing, Neighbours, Noise, OneRun
from sordino.privacy.ledger import Ledger
from sordino.privacy.noise import NoiseSource, seeded_source, system_source
from sordino.privacy.plan import Plan, open_round, private_plan
from sordino.sim.audit.broken import BrokenMechanism, Faults, NoiselessSource
from sordino.sim.audit.wording import Wording

EPSILON: Final = 1.0
LEVEL: Final = 0.001  # of each look: a self-test isn't to cry wolf
_CANARIES, _WORDS = 160, 12
_RATE: Final = 1e-3
_LORA = LoraConfig(targets=("v_proj", "o_proj", "down_proj"))


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One adversary's look at one mechanism.

    Attributes:
        fault: What is wrong with it.
        adversary: Who looks.
        broken: The measure of the broken mechanism: it must alarm.
        real: The same of the real one: it may not.
    """

    fault: str
    adversary: str
    broken: Mapping[str, Any]
    real: Mapping[str, Any]

    @property
    def passed(self) -> bool:
        """The fault was caught, and nothing else was."""
        return bool(self.broken["alarm"]) and not self.real["alarm"]


def self_test(seed: int | None = None, cache: Path | None = None) -> Iterator[Trial]:
    """Run every trial on this installation, one after another.

    Args:
        seed: Of canaries, coins and noise, for a test; None: the operating system's randomness.
        cache: The model cache; None: the user's.
    """
    base, tokenizer = warm_base(ModelConfig(), cache or cache_root())
    with tempfile.TemporaryDirectory() as folder:
        bench = _Bench(base, tokenizer, seed, Path(folder))
        yield bench.too_little_noise()
        yield bench.no_clip()
        yield bench.wrong_sampling()
        yield bench.reused_noise()
        yield bench.coupled_loss()


class _Bench:
    """Canaries, an adapter, and rounds over them."""

    def __init__(
        self, base: BaseModel, tokenizer: TokenizerFile, seed: int | None, folder: Path
    ) -> None:
        self._base, self._folder, self._seed, self._rounds = base, folder, seed, 0
        self._rng = np.random.default_rng(seed)
        wording = Wording(tokenizer, self._rng)
        texts = dict.fromkeys(wording.draw("random", _WORDS) for _ in range(2 * _CANARIES))
        records = [Record(text=text) for text in texts]
        self._records = tokenizer.encode_records(records, 64).records[:_CANARIES]
        self._coins = self._rng.random(len(self._records)) < 0.5
        manifest = adapter_manifest(base.files.config, _LORA)
        self._adapter = initial_adapter(manifest, _LORA.init_seed)
        self._trained = trained_manifest(manifest, _LORA.aggregation, 1).names
        self._gradients = record_gradients(
            base.decoder, self._adapter, self._trained, self._records, scale=self._scale
        )

    def too_little_noise(self) -> Trial:
        """A tenth of what was accounted: the guesses are better than the claim allows."""
        plan = self._plan(sampling_rate=1.0, steps=1)
        return self._guessed("noise at a tenth of what was accounted", plan, Faults(noise=0.1))

    def no_clip(self) -> Trial:
        """Canaries whose gradients are many times the clip norm."""
        plan = self._plan(sampling_rate=1.0, steps=1)
        return self._guessed("no clipping", plan, Faults(clips=False), clips=False)

    def wrong_sampling(self) -> Trial:
        """Amplification by sampling is claimed, and every record is in every batch."""
        plan = self._plan(sampling_rate=0.02, steps=4)
        return self._guessed("no sampling where it is claimed", plan, Faults(samples=False))

    def reused_noise(self) -> Trial:
        """The same stream for two releases: their difference holds no noise at all."""
        plan = self._plan(sampling_rate=1.0, steps=1)
        again = seeded_source(0 if self._seed is None else self._seed, "reused")
        same = [self._update(plan, BrokenMechanism(plan, again, Faults())) for _ in range(1)]
        again = seeded_source(0 if self._seed is None else self._seed, "reused")
        same.append(self._update(plan, BrokenMechanism(plan, again, Faults())))
        fresh = [self._update(plan, self._real(plan)) for _ in range(2)]
        return Trial(
            fault="one noise stream for two releases",
            adversary="differencing",
            broken=self._difference(plan, same).figures(),
            real=self._difference(plan, fresh).figures(),
        )

    def coupled_loss(self) -> Trial:
        """The mean over the batch's tokens: one record more changes all the others' weights."""
        lengths = np.linalg.norm(self._gradients, axis=1)
        plan = self._plan(sampling_rate=1.0, steps=1, clip_norm=float(2 * np.median(lengths)))
        short = [_cut(record, 3) for record in self._records[:40]]
        long = max(self._records, key=lambda record: len(record.ids))
        engines: list[Callable[[Sequence[TokenRecord]], NDArray[np.float64]]] = [
            lambda records: self._token_mean_sum(plan, records),
            lambda records: self._engine_sum(plan, records),
        ]
        broken, real = (
            Neighbours(
                what="40 short records, and a long one more",
                moved=(float(np.linalg.norm(engine([*short, long]) - engine(short))),),
                sensitivity=plan.sensitivity(self._gradients.shape[1]),
            ).figures()
            for engine in engines
        )
        return Trial(
            fault="a loss averaged over the batch's tokens",
            adversary="neighbour probe",
            broken=broken,
            real=real,
        )

    def _guessed(self, fault: str, plan: Plan, faults: Faults, *, clips: bool = True) -> Trial:
        source = self._source("broken")
        updates = (
            self._update(plan, BrokenMechanism(plan, source, faults)),
            self._update(plan, self._real(plan)),
        )
        broken, real = (self._one_run(plan, update, clips).figures() for update in updates)
        return Trial(fault=fault, adversary="one-run audit", broken=broken, real=real)

    def _one_run(self, plan: Plan, update: NDArray[np.float64], clips: bool) -> OneRun:
        scores = alignment(update, self._gradients, clip_norm=plan.clip_norm if clips else None)
        events = [plan.round_event()]
        tenth, half = len(scores) // 20, len(scores) // 4
        return OneRun(
            adversary="coordinator",
            scope="the whole run",
            unit="record",
            delta=plan.delta,
            scores=tuple(scores.tolist()),
            coins=tuple(self._coins.tolist()),
            canaries=tuple(range(len(scores))),
            rules=tuple(Guessing(guessed_in=n, guessed_out=n) for n in (tenth, half)),
            level=LEVEL,
            claimed_epsilon=accounting.epsilon_pld(events, plan.delta),
            curve=accounting.delta_curve(events, plan.delta),
        )

    def _difference(self, plan: Plan, updates: Sequence[NDArray[np.float64]]) -> Noise:
        first, second = updates
        size = len(first)
        deviation = plan.noise_std(size) / plan.divisor
        return Noise(
            what="the difference of two releases",
            squares=float(np.square(first - second).sum()),
            coordinates=size,
            deviation=float(np.sqrt(2) * deviation),
            level=LEVEL,
        )

    def _engine_sum(self, plan: Plan, records: Sequence[TokenRecord]) -> NDArray[np.float64]:
        """The clipped sum that the real engine makes, by a round without noise."""
        quiet = BrokenMechanism(plan, NoiselessSource(), Faults(samples=False))
        return -self._update(plan, quiet, records) * plan.divisor

    def _token_mean_sum(self, plan: Plan, records: Sequence[TokenRecord]) -> NDArray[np.float64]:
        rows = record_gradients(
            self._base.decoder, self._adapter, self._trained, records, scale=self._scale
        ).astype(np.float64)
        counts = np.array([record.targets for record in records])
        rows *= (counts * len(counts) / counts.sum())[:, None]
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        return np.asarray((rows * np.minimum(1, plan.clip_norm / lengths)).sum(0))

    def _update(
        self, plan: Plan, mechanism: object, records: Sequence[TokenRecord] | None = None
    ) -> NDArray[np.float64]:
        """What leaves after a round, as the sum of its steps' released sums over the divisor.

        The steps are so short that the gradients stay those at the start.
        """
        if records is None:
            records = [r for r, coin in zip(self._records, self._coins, strict=True) if coin]
        update, _ = train_round(
            self._base.decoder,
            self._adapter,
            self._trained,
            records,
            cast("Mechanism", mechanism),
            round_number=1,
            lora=_LORA,
            train=TrainConfig(learning_rate=_RATE, local_steps=plan.steps_per_round),
            performance=PerformanceConfig(micro_batch=16),
        )
        return flat(update).astype(np.float64) / _RATE

    def _plan(self, *, sampling_rate: float, steps: int, clip_norm: float = 0.3) -> Plan:
        privacy = PrivacyConfig(
            epsilon=EPSILON,
            clip_norm=clip_norm,
            sampling_rate=sampling_rate,
            expected_batch=sampling_rate * len(self._records),
        )
        return private_plan(privacy, run_id="self-test", rounds=1, local_steps=steps)

    def _real(self, plan: Plan) -> object:
        """The one way a round of a plan is opened: charged in a ledger."""
        self._rounds += 1
        ledger = Ledger(self._folder / f"{self._rounds}.db", "self-test")
        return open_round(plan, ledger.charge(plan, 1, "self-test"), self._source("real"))

    def _source(self, purpose: str) -> NoiseSource:
        if self._seed is None:
            return system_source()
        return seeded_source(self._seed, purpose, str(self._rounds))

    @property
    def _scale(self) -> float:
        return _LORA.alpha / _LORA.rank


def _cut(record: TokenRecord, tokens: int) -> TokenRecord:
    return TokenRecord(record.ids[:tokens], record.targets_mask[:tokens])
