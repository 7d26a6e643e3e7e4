"""What a hostile coordinator may send: each is refused, and nothing is charged or touched."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from flwr.app import Context, Message, RecordDict
from support.federation import (
    BASE,
    LORA,
    POLICY,
    TRAIN,
    TinySession,
    make_plan,
    make_task,
)

from sordino.client.app import answer, make_app, refusal
from sordino.core import adapters, canonical
from sordino.core import app as flower
from sordino.core.config import LoraConfig, TrainConfig
from sordino.core.errors import SordinoError
from sordino.core.records import TrainTask
from sordino.core.wire import encode_task, pack
from sordino.privacy.ledger import read_charges
from sordino.privacy.plan import CentralPlan, policy_limit
from sordino.privacy.policy import BUILT_IN, Cap, Policy, Work

STRICT = Policy(max_sampling_rate=0.5, base_models=(BASE,), targets=LORA.targets, max_rank=2)


@pytest.fixture
def session(tmp_path: Path) -> TinySession:
    made = TinySession("alice", tmp_path / "alice")
    made.policy, made.limit = STRICT, policy_limit(STRICT)
    return made


def forged(**changes: object) -> bytes:
    """A plan's bytes with values that no plan would be made with."""
    values = {**canonical.decode(make_plan().canonical()), **changes}
    return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()


def central(**changes: object) -> CentralPlan:
    values: dict[str, object] = {
        "run_id": "run-1",
        "rounds": 3,
        "steps_per_round": TRAIN.local_steps,
        "noise_multiplier": 20.0,
        "clip_norm": 1.0,
        "delta": 1e-5,
        "population": 100,
        "cohort": 100,
        "sampling": "none",
        "sampling_rate": 1.0,
        "batch_rate": 0.5,
        "batch_divisor": 4.0,
    }
    return CentralPlan(**{**values, **changes})  # type: ignore[arg-type]


def forged_central(**changes: object) -> bytes:
    values = {**canonical.decode(central().canonical()), **changes}
    return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()


def changed(**changes: object) -> TrainTask:
    return TrainTask(**{**make_task().__dict__, **changes})  # type: ignore[arg-type]


def refused(session: TinySession, task: TrainTask) -> str:
    """The word that the coordinator is told; nothing is charged, nothing trained."""
    before = charges(session)
    trained = session.trained
    with pytest.raises(SordinoError) as caught:
        answer(session, task)  # type: ignore[arg-type]
    assert charges(session) == before
    assert session.trained == trained
    return refusal(caught.value)


def charges(session: TinySession) -> int:
    path = session.state_dir / "ledger.db"
    return len(read_charges(path).get("alice", ())) if path.exists() else 0


RAISED = LoraConfig(rank=3, targets=LORA.targets)
ELSEWHERE = LoraConfig(rank=2, targets=("q_proj", "v_proj"))


def shaped(lora: LoraConfig) -> dict[str, object]:
    """A task whose adapter has another shape, consistently."""
    from support.federation import ARCHITECTURE

    manifest = adapters.adapter_manifest(ARCHITECTURE, lora)
    return {"lora": lora, "manifest_sha256": manifest.sha256, "tensors": {}}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"plan": forged(noise_multiplier=0.0)}, "plan-refused"),
        ({"plan": forged(noise_multiplier=-1.0)}, "plan-refused"),
        ({"plan": forged(noise_multiplier=math.nan)}, "plan-refused"),
        ({"plan": forged(noise_multiplier="1.0")}, "plan-refused"),
        ({"plan": make_plan(noise_multiplier=0.01).canonical()}, "policy-noise"),
        ({"plan": forged(clip_norm=math.inf)}, "plan-refused"),
        ({"plan": make_plan(clip_norm=1e6).canonical()}, "policy-clip"),
        ({"plan": make_plan(sampling_rate=1.0).canonical()}, "policy-sampling"),
        ({"plan": forged(delta=1.0)}, "plan-refused"),
        ({"plan": make_plan(delta=0.5).canonical()}, "policy-delta"),
        ({"base_sha256": "cd" * 32}, "model-mismatch"),
        ({"manifest_sha256": "cd" * 32}, "model-mismatch"),
        (shaped(RAISED), "policy-adapter"),
        (shaped(ELSEWHERE), "policy-adapter"),
        ({"train": TrainConfig(local_steps=30)}, "plan-refused"),
        ({"round": 4}, "plan-refused"),
        ({"run_id": "another"}, "plan-refused"),
        ({"plan": make_plan(rounds=100_000).canonical()}, "policy-rounds"),
        ({"plan": b""}, "plan-refused"),
        ({"plan": central().canonical()}, "policy-trust"),
    ],
)
def test_each_is_refused_and_costs_nothing(
    session: TinySession, change: dict[str, object], word: str
) -> None:
    assert refused(session, changed(**change)) == word
    assert charges(session) == 0


@pytest.mark.parametrize(
    ("plan", "word"),
    [
        (central(cohort=1, population=1).canonical(), "policy-cohort"),
        (central(cohort=50_000, population=50_000).canonical(), "policy-population"),
        # Amplification claimed with q = 1, or with a population that the cohort doesn't bear out.
        (forged_central(sampling="poisson"), "plan-refused"),
        (forged_central(sampling="poisson", sampling_rate=1.0), "plan-refused"),
        (forged_central(sampling="poisson", sampling_rate=0.001, population=1000), "plan-refused"),
        (forged_central(sampling_rate=0.001, population=100_000), "plan-refused"),
        (
            central(sampling="poisson", sampling_rate=0.1, population=1000).canonical(),
            "policy-sampling",
        ),
        (central(noise_multiplier=0.1).canonical(), "policy-noise"),
    ],
)
def test_central_poison(session: TinySession, plan: bytes, word: str) -> None:
    caps = (Cap(epsilon=1e3, delta=1e-5, unit="user"),)
    session.policy = Policy(trust=("central",), max_sampling_rate=0.5, caps=caps)
    assert refused(session, changed(plan=plan)) == word


def test_a_swapped_base_is_refused_even_if_the_device_has_it(session: TinySession) -> None:
    session.policy = Policy(max_sampling_rate=0.5, base_models=("cd" * 32,))
    assert refused(session, make_task()) == "policy-base"


def test_a_replayed_or_stale_round_costs_nothing_more(session: TinySession) -> None:
    loose = Policy(max_sampling_rate=0.5, caps=(Cap(epsilon=100.0, delta=1e-5),))
    session.policy, session.limit = loose, policy_limit(loose)
    first = pack(answer(session, make_task(2)))  # type: ignore[arg-type]
    assert pack(answer(session, make_task(2))) == first  # type: ignore[arg-type]
    assert (charges(session), session.trained) == (1, 1)
    assert refused(session, make_task(1)) == "stale-round"
    other = make_plan(noise_multiplier=2.0)
    assert refused(session, make_task(2, other)) in ("plan-refused", "ledger-refused")


def test_the_cap_is_held_whatever_the_coordinator_names_its_runs(session: TinySession) -> None:
    words = []
    for number in range(40):
        plan = make_plan(run_id=f"run-{number}", sampling_rate=0.5)
        task = TrainTask(
            **{**make_task(1, plan).__dict__, "run_id": plan.run_id}  # type: ignore[arg-type]
        )
        try:
            answer(session, task)  # type: ignore[arg-type]
        except SordinoError as error:
            words.append(refusal(error))
    assert 0 < len(words) < 40
    assert set(words) <= {"policy-budget", "ledger-refused"}
    assert words[0] == "policy-budget"
    assert charges(session) == 40 - len(words)


def test_a_device_that_is_busy_says_so_and_charges_nothing(session: TinySession) -> None:
    session.policy = Policy(max_sampling_rate=0.5, work=Work(charging=True))
    assert refused(session, make_task()) == "policy-not-now"
    session.now = {"charging": True}
    answer(session, make_task())  # type: ignore[arg-type]
    assert charges(session) == 1


def test_the_builtin_policy_refuses_what_the_tests_policy_allows(session: TinySession) -> None:
    session.policy = BUILT_IN
    assert refused(session, make_task()) == "policy-sampling"
    session.policy = POLICY
    answer(session, make_task())  # type: ignore[arg-type]


def test_the_coordinator_is_told_one_word(session: TinySession) -> None:
    session.policy = BUILT_IN
    records = flower.to_records(encode_task(make_task()))
    with flower.task_identity(run_id=1, node_id=1):
        message = Message(records, dst_node_id=2, message_type="train", group_id="1")
        app = make_app(lambda _: session)  # type: ignore[arg-type, return-value]
        reply = app(message, Context(1, 2, {}, RecordDict(), {}))
    assert reply.has_error()
    assert reply.error.reason == "policy-sampling"


@pytest.mark.parametrize("asked", [("attention",), ("self_attn.q_proj", "v_proj")])
@pytest.mark.parametrize("allowed", [("attention",), ("q_proj", "k_proj", "v_proj", "o_proj")])
def test_groups_and_names_of_linears_mean_the_same_to_a_policy(
    session: TinySession, asked: tuple[str, ...], allowed: tuple[str, ...]
) -> None:
    session.policy = replace(STRICT, targets=allowed)
    lora = LoraConfig(rank=2, targets=asked)
    answer(session, changed(**shaped(lora)))  # type: ignore[arg-type]
    assert charges(session) == 1


@pytest.mark.parametrize("asked", [("mlp",), ("attention", "mlp"), ("q_proj", "up_proj")])
def test_an_adapter_outside_the_allowed_group_is_refused(
    session: TinySession, asked: tuple[str, ...]
) -> None:
    session.policy = replace(STRICT, targets=("attention",))
    lora = LoraConfig(rank=2, targets=asked)
    assert refused(session, changed(**shaped(lora))) == "policy-adapter"
