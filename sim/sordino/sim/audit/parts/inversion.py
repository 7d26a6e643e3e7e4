"""Which tokens an update of the first layer gives away, in the run and in an easy case."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sordino.client.data.tokens import TokenRecord
from sordino.client.probe import embedded_vocabulary, record_gradients
from sordino.core.records import Tensors
from sordino.privacy.audit import Inversion, span_check
from sordino.privacy.plan import Plan
from sordino.sim.audit.target import Target

_ABSENT = 500
_READS = ("v_proj", "k_proj", "q_proj")  # the first token tells a query nothing: v before q


def inversions(target: Target) -> list[tuple[str, Inversion]]:
    """A client's update of the first round, and the positive controls.

    The controls are one record of fewer distinct tokens than the adapter's rank, one step and a B
    that isn't zero: without noise, and with the noise of one step of the run's plan.

    Returns:
        What was done to know how the measure does, empty for the run's own update; and the measure.
        Nothing where the run's family adds positions, or no linear of the first input trains.
    """
    names = [n for n in target.trained(1) if ".layers.0." in n and _reads(n)]
    if target.base.decoder.architecture.parts.positions or not names:
        return []
    names.sort(key=lambda n: [i for i, what in enumerate(_READS) if what in n])
    name = names[0]
    found: list[tuple[str, Inversion]] = []
    update = target.update(target.main, 1, 0)
    records = _records(target, target.corpus.users[0])
    if update is not None and records:
        noise = _noise_of_update(target)
        found.append(
            ("", _measure(target, name, update[name], records, noise, "round 1, client 1"))
        )
    easy = _easy_record(target, records)
    if easy is None:
        return found
    gradient = _gradient(target, name, easy)
    said = "one record, one step, B not zero"
    found.append((said, _measure(target, name, gradient, [easy], 0.0, said)))
    plan = target.plan(target.main)
    if isinstance(plan, Plan):
        noise = plan.noise_multiplier * plan.clip_norm
        noised = _clipped(gradient, plan.clip_norm)
        noised = noised + target.corpus.rng("inversion").normal(0.0, noise, noised.shape)
        said = f"{said}, with the plan's noise"
        found.append((said, _measure(target, name, noised, [easy], noise, said)))
    return found


def _reads(name: str) -> bool:
    return any(f".{what}." in name for what in _READS)


def _records(target: Target, user: str) -> tuple[TokenRecord, ...]:
    encoded = target.corpus.tokenizer.encode_records(
        target.corpus.data(user).train, target.config.data.max_tokens
    )
    return encoded.records


def _easy_record(target: Target, records: Sequence[TokenRecord]) -> TokenRecord | None:
    """The beginning of a record, cut to fewer distinct tokens than the rank."""
    size = max(2, target.config.lora.rank // 2)
    for record in records:
        if len(record.ids) > size and len(set(record.ids[:size].tolist())) == size:
            return TokenRecord(record.ids[: size + 1], record.targets_mask[: size + 1])
    return None


def _gradient(target: Target, name: str, record: TokenRecord) -> NDArray[np.float64]:
    """Of a tensor of the first layer, at an adapter whose B isn't zero."""
    rng = target.corpus.rng("B")
    start: Tensors = {
        key: value if ".lora_A." in key else rng.normal(0, 0.02, value.shape).astype(np.float32)
        for key, value in target.tensors(target.main, 0).items()
    }
    rows = record_gradients(target.base.decoder, start, [name], [record], scale=target.scale)
    return np.asarray(rows[0].reshape(start[name].shape), dtype=np.float64)


def _clipped(gradient: NDArray[np.float64], norm: float) -> NDArray[np.float64]:
    return np.asarray(gradient * min(1.0, norm / max(float(np.linalg.norm(gradient)), 1e-30)))


def _noise_of_update(target: Target) -> float:
    """Of each value of a round's update, by plain SGD; an adaptive optimizer's is unknown."""
    plan, train = target.plan(target.main), target.config.train
    if not isinstance(plan, Plan) or train.optimizer != "sgd":
        return 0.0
    step = plan.noise_multiplier * plan.clip_norm / plan.divisor
    return train.learning_rate * step * math.sqrt(plan.steps_per_round)


def _measure(
    target: Target,
    name: str,
    update: NDArray[np.floating],
    records: Sequence[TokenRecord],
    noise: float,
    what: str,
) -> Inversion:
    inputs = embedded_vocabulary(target.base.decoder)
    matrix = "A" if ".lora_A." in name else "B"
    if matrix == "B":
        inputs = inputs @ _first(target.tensors(target.main, 0), name).T
    read = sorted({int(i) for record in records for i in record.ids[:-1]})
    others = np.setdiff1d(np.arange(len(inputs)), read)
    chosen = target.corpus.rng("absent").choice(
        others, size=min(_ABSENT, len(others)), replace=False
    )
    found = span_check(update, inputs, noise=noise)
    return Inversion(
        what=what,
        matrix=matrix,
        adapter_rank=target.config.lora.rank,
        rows=update.shape[0],
        columns=update.shape[1],
        noise=noise,
        distinct=len(read),
        singular_values=tuple(found.singular_values.tolist()),
        present=tuple(found.residuals[read].tolist()),
        absent=tuple(found.residuals[np.sort(chosen)].tolist()),
    )


def _first(tensors: Mapping[str, NDArray[np.float32]], name: str) -> NDArray[np.float32]:
    return tensors[name.replace(".lora_B.", ".lora_A.")]
