"""Choose each model's training defaults, on histories that no report is about.

    OMP_NUM_THREADS=1 nice -n 19 python tools/sweep_defaults.py pocket --results pocket.jsonl
    python tools/sweep_defaults.py pocket --results pocket.jsonl --table

A study is a list of questions, each with a few arms that change the start's settings in one thing.
Every trial is one JSON line; a study that is started again goes on after the last one, and several
processes may share it (`--share 0/3`, `1/3`, `2/3`). A trial trains as a device does: the plan's
own noise, solved for its ε, a ledger's charge for each round, `train_round`, the coordinator's
bound on an honest update, its sum. What differs is that noise and batches are seeded, so that arms
are compared on the same draws.

The clients are groups of speaking roles of `shakespeare.TUNING`. Choosing settings by looking at
held-out losses of private records would itself be a release and would have to be charged.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweep_trials import Bench, Settings, Trial


@dataclass(frozen=True)
class Question:
    """What is compared.

    Attributes:
        name: As the table calls it.
        epsilon: Of each trial; infinity: without privacy.
        arms: The settings of each.
        seeds: The seeds of each arm.
    """

    name: str
    epsilon: float
    arms: Sequence[Settings]
    seeds: Sequence[int] = (0,)

    def trials(self) -> Iterator[Trial]:
        """Each arm with each seed."""
        for seed in self.seeds:
            for arm in self.arms:
                yield Trial(self.epsilon, arm, seed)


def run_study(
    questions: Sequence[Question],
    run: Callable[[Trial], Mapping[str, float]],
    results: Path,
    *,
    minutes: float = math.inf,
    share: tuple[int, int] = (0, 1),
) -> None:
    """Run the trials that have no line in `results` yet.

    Args:
        questions: In the order of their weight.
        run: Runs one trial.
        results: JSON lines, appended to.
        minutes: Processor time, after which no further trial begins.
        share: This process runs every n-th trial (which, n).
    """
    trials = {t.key: (q, t) for q in reversed(questions) for t in q.trials()}
    in_order = dict.fromkeys(t.key for q in questions for t in q.trials())
    for index, key in enumerate(in_order):
        if index % share[1] != share[0] or key in {line["trial"] for line in read(results)}:
            continue
        if time.process_time() > 60 * minutes:
            return
        question, trial = trials[key]
        line = {
            "trial": key,
            "question": question.name,
            "epsilon": repr(trial.epsilon),
            "seed": trial.seed,
            "settings": dict(trial.settings),
            **run(trial),
        }
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def read(results: Path) -> list[dict[str, Any]]:
    """The lines of a file of results; none if there is no such file."""
    if not results.exists():
        return []
    return [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]


# --- the studies -------------------------------------------------------------------------------

EPSILON = 8.0
POCKET_START: Settings = {
    "lora.targets": ("v_proj", "o_proj", "down_proj"),
    "train.optimizer": "sgd",
    "train.learning_rate": 4.0,
    "train.local_steps": 4,
    "federation.rounds": 3,
    "privacy.clip_norm": 0.3,
    "privacy.sampling_rate": 0.25,
    "privacy.expected_batch": 30.0,
    "performance.micro_batch": 64,
}
SMOLLM2_START: Settings = {
    "model.name": "smollm2-135m",
    "lora.targets": ("v_proj",),
    "train.optimizer": "sgd",
    "train.learning_rate": 2.0,
    "train.local_steps": 5,
    "federation.rounds": 2,
    "privacy.clip_norm": 0.5,
    "privacy.sampling_rate": 0.06,
    "privacy.expected_batch": 8.0,
    "performance.micro_batch": 16,
}


def sgd(start: Settings, *rates: float, **train: Any) -> list[Settings]:
    """Arms with plain SGD at these rates."""
    return [_train(start, optimizer="sgd", learning_rate=rate, **train) for rate in rates]


def adam(start: Settings, *rates: float, **train: Any) -> list[Settings]:
    """Arms with Adam at these rates."""
    return [_train(start, optimizer="adam", learning_rate=rate, **train) for rate in rates]


def clip(start: Settings, *norms: float) -> list[Settings]:
    """Arms with these clip norms; rate × C is the start's, and so is the noise of a step."""
    reach = start["train.learning_rate"] * start["privacy.clip_norm"]
    return [
        {**_train(start, learning_rate=reach / norm), "privacy.clip_norm": norm} for norm in norms
    ]


def falling(start: Settings) -> list[Settings]:
    """Schedules that go about as far in all as the start's constant rate."""
    rate = 1.5 * start["train.learning_rate"]
    return [
        _train(start, learning_rate=rate, schedule="linear"),
        _train(start, learning_rate=rate, schedule="cosine"),
        _train(start, learning_rate=rate, schedule="linear", warmup=0.25),
    ]


def batches(start: Settings, *shapes: tuple[float, int]) -> list[Settings]:
    """Sampling rates with local steps, at about the same work; the rate keeps the whole way."""
    way = start["train.learning_rate"] * start["train.local_steps"]
    per_rate = start["privacy.expected_batch"] / start["privacy.sampling_rate"]
    return [
        {
            **_train(start, learning_rate=way / steps, local_steps=steps),
            "privacy.sampling_rate": rate,
            "privacy.expected_batch": per_rate * rate,
        }
        for rate, steps in shapes
    ]


def _train(start: Settings, **changes: Any) -> Settings:
    return {**start, **{f"train.{name}": value for name, value in changes.items()}}


def _pocket() -> list[Question]:
    start, free = POCKET_START, math.inf
    best = adam(start, 0.01)[0]
    return [
        Question("rate, SGD", EPSILON, sgd(start, 4.0, 2.0, 8.0)),
        Question("rate, SGD", EPSILON, sgd(start, 4.0), seeds=(1,)),
        Question("batch and steps", EPSILON, batches(start, (0.5, 2)), seeds=(0, 1)),
        Question("views", EPSILON, [_train(start, views=2, view_cut=0.5)], seeds=(0, 1)),
        Question("schedule", EPSILON, falling(start)),
        Question("rate, Adam", EPSILON, adam(start, 0.01, 0.03)),
        Question("clip norm", EPSILON, clip(start, 1.0, 0.1)),
        Question("without privacy, Adam", free, adam(start, 0.01, 0.02, 0.005)),
        Question("rate, SGD", 2.0, sgd(start, 4.0, 2.0, 1.0)),
        Question("batch and steps", EPSILON, batches(start, (0.125, 8), (1.0, 1))),
        Question("without privacy, SGD", free, sgd(start, 0.5, 2.0)),
        Question("without privacy, views", free, [_train(best, views=2, view_cut=0.5)]),
        Question("views", EPSILON, [_train(start, views=4, view_cut=0.5)]),
        Question("without privacy, schedule", free, falling(best)[:1]),
        Question("schedule", EPSILON, falling(start)[:1], seeds=(1,)),
        Question("views, dropout alone", EPSILON, [_train(start, views=2, view_cut=0.0)]),
        Question(
            "views, cut alone", EPSILON, [_train(start, views=2, view_dropout=0.0, view_cut=0.5)]
        ),
        Question("rate, Adam", 2.0, adam(start, 0.005, 0.015)),
    ]


def _smollm2() -> list[Question]:
    start, free = SMOLLM2_START, math.inf
    return [
        Question("rate, SGD", EPSILON, sgd(start, 2.0, 4.0, 1.0)),
        Question("without privacy, Adam", free, adam(start, 0.005, 0.01)),
        Question("rate, SGD", 2.0, sgd(start, 2.0, 1.0)),
        Question("schedule", EPSILON, falling(start)[:1]),
        Question("clip norm", EPSILON, clip(start, 2.0)),
        Question("rate, Adam", EPSILON, adam(start, 0.03)),
        Question("views", EPSILON, [_train(start, views=2, view_cut=0.5)]),
        Question("batch and steps", EPSILON, batches(start, (0.15, 2))),
        Question("without privacy, SGD", free, sgd(start, 0.5)),
    ]


STUDIES = {"pocket": _pocket(), "smollm2-135m": _smollm2()}
BENCHES = {
    "pocket": Bench("pocket", clients=4, max_tokens=32, most_held_out=24),
    "smollm2-135m": Bench("smollm2-135m", clients=2, max_tokens=32, most_held_out=16),
}


# --- the command -------------------------------------------------------------------------------


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """The results as Markdown: each question's arms, with what all of them share left out."""
    rows = ["| Question | ε | Settings | Gain, by seed | Clipped | Signal / noise |"]
    rows += ["|---|---|---|---|---|---|"]
    arms: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for line in sorted(lines, key=lambda line: line["seed"]):
        where = line["question"], json.dumps([line["epsilon"], line["settings"]])
        arms.setdefault(where, []).append(line)
    shared = set.intersection(*({*map(repr, line["settings"].items())} for line in lines))
    for (question, _), same in sorted(arms.items()):
        first = same[0]
        own = [f"{k} {v}" for k, v in first["settings"].items() if repr((k, v)) not in shared]
        gains = ", ".join(f"{line['gain']:+.3f}" for line in same)
        words = [question, first["epsilon"], ", ".join(own), gains]
        words += [f"{first['clipped']:.0%}", f"{first['signal_to_noise']:.3f}"]
        rows.append(f"| {' | '.join(words)} |")
    return "\n".join(rows)


def main() -> None:
    """Run or print a study."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", choices=STUDIES)
    parser.add_argument("--results", type=Path, required=True, help="JSON lines, one a trial")
    parser.add_argument("--minutes", type=float, default=45.0, help="of processor time")
    parser.add_argument("--share", default="0/1", help="run every n-th trial, as k/n with k from 0")
    parser.add_argument("--table", action="store_true", help="print the results and stop")
    given = parser.parse_args()
    if given.table:
        print(table(read(given.results)))
        return
    which, of = map(int, given.share.split("/"))
    run_study(
        STUDIES[given.model],
        BENCHES[given.model].run,
        given.results,
        minutes=given.minutes,
        share=(which, of),
    )


if __name__ == "__main__":
    main()
