"""A paid metric from end to end: asked, allowed, charged, noised, kept, validated, averaged."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from support.federation import (
    LORA,
    POLICY,
    TRAINING,
    TinySession,
    initial,
    make_looks,
    make_metric,
    make_metric_task,
    make_plan,
    make_strategy,
    make_task,
)

from sordino.client.app import answer, answer_metric, make_app
from sordino.core import app as flower
from sordino.core.canonical import sha256_hex
from sordino.core.config import (
    ExperimentConfig,
    FederationConfig,
    LoraConfig,
    MetricsConfig,
    PrivacyConfig,
)
from sordino.core.errors import (
    ClaimError,
    ConfigError,
    DataError,
    LedgerError,
    ModelError,
    PlanError,
    PolicyRefusedError,
    UpdateRejectedError,
    WireError,
)
from sordino.core.records import Measurement, MetricTask, Receipt
from sordino.core.wire import (
    Envelope,
    decode_measurement,
    decode_metric_task,
    encode_measurement,
    encode_metric_task,
    pack,
    unpack,
)
from sordino.privacy.accounting import epsilon_pld
from sordino.privacy.ledger import export_ledgers, read_charges, read_ledger
from sordino.privacy.plan import (
    MetricPlan,
    first_refused_round,
    forecast,
    metric_plan,
    plan_of_run,
    policy_limit,
    private_plan,
    support,
    verify_ledger,
)
from sordino.privacy.plan import metrics as looking
from sordino.privacy.policy import BUILT_IN, Cap
from sordino.server.aggregate import value_bound
from sordino.server.rounds import MemoryRounds, run_rounds
from sordino.server.strategy import to_arrays
from sordino.sim.grid import LocalGrid


@pytest.fixture
def session(tmp_path: Path) -> TinySession:
    return TinySession("alice", tmp_path / "alice")


@pytest.fixture
def identity() -> Iterator[None]:
    with flower.task_identity(run_id=1, node_id=1):
        yield


def changed(task: MetricTask, **changes: object) -> MetricTask:
    return MetricTask(**{**task.__dict__, **changes})  # type: ignore[arg-type]


def entries(session: TinySession) -> int:
    path = session.state_dir / "ledger.db"
    return len(read_charges(path)["alice"]) if path.exists() else 0


def measured(session: TinySession, task: MetricTask) -> Measurement:
    return decode_measurement(answer_metric(session, task))


# --- the client --------------------------------------------------------------------------------


def test_a_look_is_charged_measured_kept_and_answered(session: TinySession) -> None:
    envelope = answer_metric(session, make_metric_task())
    measurement = decode_measurement(envelope)
    (standing,) = read_ledger(session.state_dir / "ledger.db")["alice"].charges.values()
    entry, commit = standing.reserve, standing.commit
    assert commit is not None
    receipt = measurement.receipt
    assert (receipt.ledger_head, receipt.entry_index) == (commit.sha256, commit.index)
    assert (standing.state, standing.artefact) == ("released", sha256_hex(pack(envelope)))
    assert (entry.run_id, entry.round, entry.dataset) == ("run-1:loss", 1, "tiny")
    assert entry.plan_sha256 == measurement.plan_sha256 == make_metric().sha256
    assert dict(entry.event) == make_metric().event_fields()
    verdict = verify_ledger(session.state_dir / "ledger.db")
    assert verdict.ok, verdict.defects


def test_an_answer_holds_the_noised_value_and_the_receipt_and_nothing_else(
    session: TinySession,
) -> None:
    envelope = answer_metric(session, make_metric_task())
    assert set(envelope.fields) == {
        "kind",
        "version",
        "run-id",
        "round",
        "plan-sha256",
        "value",
        "ledger-head",
        "ledger-entry",
    }
    assert not envelope.tensors
    assert envelope.fields["value"] != 2.0  # the exact mean


def test_a_retry_resends_the_same_bytes_without_charge_draw_or_look(session: TinySession) -> None:
    first = pack(answer_metric(session, make_metric_task()))
    again = TinySession("alice", session.state_dir)  # the process was restarted in between
    assert pack(answer_metric(again, make_metric_task())) == first
    assert (again.measured, hasattr(again, "draws"), entries(session)) == (0, False, 1)
    moved = {name: np.ones_like(t) for name, t in initial().items() if "lora_B" in name}
    assert pack(answer_metric(again, changed(make_metric_task(), tensors=moved))) == first


def test_the_charge_is_durable_before_a_record_is_touched(session: TinySession) -> None:
    seen: list[int] = []
    measure = session.measure

    def spy(metric: str, adapter, lora: LoraConfig):  # type: ignore[no-untyped-def]
        seen.append(entries(session))
        return measure(metric, adapter, lora)

    session.measure = spy  # type: ignore[method-assign]
    answer_metric(session, make_metric_task())
    assert seen == [1]


@pytest.mark.parametrize("error", [MemoryError(), KeyboardInterrupt(), DataError("gone")])
def test_a_crash_after_the_charge_abandons_the_look(
    session: TinySession, error: BaseException
) -> None:
    session.fail = error  # type: ignore[assignment]
    with pytest.raises(type(error)):
        answer_metric(session, make_metric_task())
    session.fail = None
    with pytest.raises(LedgerError, match="already charged"):
        answer_metric(session, make_metric_task())
    assert (session.measured, entries(session)) == (0, 1)
    answer_metric(session, make_metric_task(2))  # the next look goes on


def test_rounds_and_looks_are_charged_beside_each_other(session: TinySession) -> None:
    session.limit = policy_limit(POLICY)
    for number in (1, 2):
        answer(session, make_task(number))
        answer_metric(session, make_metric_task(number))
    assert entries(session) == 4
    tight = (Cap(epsilon=1.0, delta=1e-5),)  # of which nothing is left for another look
    session.limit = policy_limit(replace(POLICY, caps=tight))
    with pytest.raises(PolicyRefusedError) as refusal:
        answer_metric(session, make_metric_task(3))
    assert refusal.value.reason == "policy-budget"
    assert entries(session) == 4


OTHER = make_metric(run_id="another:loss")


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"base_sha256": "cd" * 32}, ModelError, "base_sha256"),
        ({"manifest_sha256": "cd" * 32}, ModelError, "manifest_sha256"),
        ({"lora": LoraConfig(rank=3, targets=LORA.targets)}, ModelError, "manifest_sha256"),
        ({"plan": b"{}"}, PlanError, "plan"),
        ({"plan": make_metric().canonical() + b" "}, PlanError, "can't be read"),
        ({"plan": make_plan().canonical()}, PlanError, "kind"),  # nobody is shown a training plan
        ({"plan": OTHER.canonical()}, PlanError, "run_id"),
        ({"round": 4}, PlanError, "round"),
        ({"tensors": {"x": np.ones(2, np.float32)}}, UpdateRejectedError, "extra-tensor"),
        ({"plan": make_metric(metric="norm").canonical()}, PlanError, "one of loss, accuracy"),
    ],
)
def test_what_is_refused_costs_nothing(
    session: TinySession, change: dict[str, object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        answer_metric(session, changed(make_metric_task(), **change))
    assert (session.measured, entries(session)) == (0, 0)


@pytest.mark.parametrize(
    ("policy", "plan", "reason"),
    [
        (BUILT_IN, {}, "policy-metric"),  # nothing may be bought unless the owner says so
        (replace(POLICY, metrics=("accuracy",)), {}, "policy-metric"),
        (replace(POLICY, min_metric_noise=4.1), {}, "policy-noise"),
        (replace(POLICY, max_rounds=2), {}, "policy-rounds"),
        (replace(POLICY, trust=("central",)), {}, "policy-trust"),
        (replace(POLICY, base_models=("cd" * 32,)), {}, "policy-base"),
        (POLICY, {"delta": 1e-3}, "policy-delta"),
        (POLICY, {"purpose": "stop", "noise_multiplier": 1e-3}, "policy-noise"),
    ],
)
def test_nothing_leaves_that_the_policy_does_not_allow(
    session: TinySession, policy, plan: dict[str, object], reason: str
) -> None:  # type: ignore[no-untyped-def]
    session.policy = policy
    with pytest.raises(PolicyRefusedError) as refusal:
        answer_metric(session, make_metric_task(plan=make_metric(**plan)))
    assert refusal.value.reason == reason
    assert (session.measured, entries(session)) == (0, 0)


@pytest.mark.usefixtures("identity")
def test_through_flower_and_errors_say_nothing_of_the_data(session: TinySession) -> None:
    app = make_app(lambda _: session)  # type: ignore[arg-type, return-value]

    def send(records: RecordDict) -> Message:
        message = Message(records, dst_node_id=2, message_type="evaluate", group_id="1")
        return app(message, Context(1, 2, {}, RecordDict(), {}))

    task = make_metric_task()
    session.fail = ValueError("a record said: hunter2")
    reply = send(flower.to_records(encode_metric_task(task)))
    assert (reply.error.code, reply.error.reason) == (flower.ERROR_REFUSED, "internal")
    session.fail = None
    reply = send(flower.to_records(encode_metric_task(changed(task, round=2))))
    assert decode_measurement(flower.from_records(reply.content)).round == 2
    session.policy = BUILT_IN
    reply = send(flower.to_records(encode_metric_task(changed(task, round=3))))
    assert reply.error.reason == "policy-metric"
    assert send(RecordDict()).error.reason == "malformed-task"


# --- what leaves is as noisy as is charged, and clipped ----------------------------------------

LOOKS = 64


def answers(session: TinySession) -> np.ndarray:
    plan = make_metric(rounds=LOOKS)
    return np.array(
        [measured(session, make_metric_task(n, plan)).value for n in range(1, LOOKS + 1)]
    )


def as_charged(found: np.ndarray, plan: MetricPlan) -> bool:
    """Mean and spread of what a client sends: 10 records of 2.0 about 4.0, and the noise."""
    std = plan.noise_multiplier * plan.clip_norm / plan.divisor
    close = abs(np.mean(found) - 2.0) < 4 * std / math.sqrt(LOOKS)
    return bool(close and abs(np.std(found) / std - 1) < 0.35)  # four of its own errors


def test_what_leaves_is_as_noisy_as_is_charged(session: TinySession) -> None:
    assert as_charged(answers(session), make_metric())


def test_half_the_noise_is_caught(session: TinySession, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = looking.noise_scale
    monkeypatch.setattr(looking, "noise_scale", lambda sigma, c, d: honest(sigma / 2, c, d))
    assert not as_charged(answers(session), make_metric())


def moved_by_one(folder: Path, value: float) -> float:
    """How far one more record moves the sum, both noises being the same draw."""
    plan = make_metric(divisor=16.0)
    found = []
    for name, values in (("with", (2.0, value)), ("without", (2.0,))):
        session = TinySession("alice", folder / name, values=values)
        session.noise_source = lambda run, number: Still()  # type: ignore[method-assign, assignment, return-value]
        found.append(measured(session, make_metric_task(plan=plan)).value)
    return abs(found[0] - found[1]) * plan.divisor


class Still:
    label, private = "still: for tests", False

    def rounded_gaussian(self, size: int, scale: float) -> np.ndarray:
        return np.zeros(size, np.int64)


@pytest.mark.parametrize("value", [1e9, -1e9, 8.0, 0.0, 5.0])
def test_one_record_moves_the_sum_by_at_most_c(tmp_path: Path, value: float) -> None:
    assert moved_by_one(tmp_path, value) <= 4.0


def test_no_clip_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "clip", lambda values, low, high: values)
    assert moved_by_one(tmp_path, 1e9) > 4.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_counts_as_nothing(tmp_path: Path, value: float) -> None:
    assert moved_by_one(tmp_path, value) == 0.0


# --- the wire ----------------------------------------------------------------------------------


def test_task_and_answer_travel_and_nothing_odd_does() -> None:
    task = make_metric_task()
    back = decode_metric_task(unpack(pack(encode_metric_task(task))))
    assert back == task
    good = encode_measurement(measurement())
    assert decode_measurement(unpack(pack(good))) == measurement()
    for odd in (
        Envelope({**good.fields, "kind": "update"}),
        Envelope({**good.fields, "value": 1}),
        Envelope({**good.fields, "value": "1.0"}),
        Envelope({**good.fields, "count": 10}),
        Envelope({k: v for k, v in good.fields.items() if k != "ledger-head"}),
        Envelope(good.fields, {"value": np.ones(3)}),
    ):
        with pytest.raises(WireError):
            decode_measurement(odd)
    with pytest.raises(WireError, match="finite"):
        measurement(value=math.nan)


# --- the coordinator ---------------------------------------------------------------------------


def measurement(**changes: object) -> Measurement:
    values: dict[str, object] = {
        "run_id": "run-1:loss",
        "round": 1,
        "plan_sha256": make_metric().sha256,
        "value": 3.0,
        "receipt": Receipt(ledger_head="0" * 64, entry_index=1),
    }
    return Measurement(**{**values, **changes})  # type: ignore[arg-type]


def replies(messages, envelopes):  # type: ignore[no-untyped-def]
    found = []
    for number, (message, envelope) in enumerate(zip(messages, envelopes, strict=True)):
        flower.set_message_id(message, f"m{number}")
        content = envelope if isinstance(envelope, RecordDict) else flower.to_records(envelope)
        found.append(Message(content, reply_to=message))
    return found


def poisoned(value: float) -> RecordDict:
    """An answer whose value the wire's own encoder would not have let through."""
    records = flower.to_records(encode_measurement(measurement()))
    records[flower.FIELDS]["value"] = value
    return records


@pytest.mark.usefixtures("identity")
def test_valid_answers_weigh_the_same_and_bad_ones_are_dropped() -> None:
    looks, bound = make_looks(), value_bound(make_metric())
    sent = [
        encode_measurement(measurement(value=3.0)),
        encode_measurement(measurement(value=5.5)),
        poisoned(math.nan),
        poisoned(math.inf),
        encode_measurement(measurement(value=4.0 + 1.01 * bound)),
        encode_measurement(measurement(round=2)),
        encode_measurement(measurement(run_id="run-1")),
        encode_measurement(measurement(plan_sha256=make_metric(noise_multiplier=1.0).sha256)),
        Envelope(encode_measurement(measurement()).fields, {"x": np.ones(3, np.float32)}),
        Envelope({"kind": "update", "version": 1}),
    ]
    messages = looks.open(1, initial(), range(2, 2 + len(sent)))
    report = looks.close(replies(messages, sent))
    assert (report.value, report.received, report.sent) == (4.25, 2, len(sent))
    assert report.noise_std == pytest.approx(make_metric().noise_std / math.sqrt(2))
    assert report.figures()["dropped"] == {
        "malformed": 4,
        "out-of-range": 1,
        "wrong-round": 1,
        "wrong-run": 1,
        "wrong-plan": 1,
    }
    with pytest.raises(PlanError, match="open look"):
        looks.close([])


@pytest.mark.usefixtures("identity")
def test_a_second_answer_and_a_silent_node_do_not_count() -> None:
    looks = make_looks()
    messages = looks.open(1, initial(), [2, 3, 4])
    first, second, _ = replies(messages, [encode_measurement(measurement())] * 3)
    report = looks.close([first, first, second])
    assert report.figures()["dropped"] == {"unexpected": 1, "no-reply": 1}
    with pytest.raises(PlanError, match="without repeats"):
        looks.open(1, initial(), [2, 2])
    looks.open(1, initial(), [2])
    assert looks.close([]).value is None  # nobody answered: the run goes on


@pytest.mark.usefixtures("identity")
def test_the_order_of_arrival_changes_nothing() -> None:
    values = np.random.default_rng(0).normal(4.0, 1.0, 20).tolist()
    found = set()
    for shuffled in (values, values[::-1], sorted(values)):
        looks = make_looks()
        messages = looks.open(1, initial(), range(2, 22))
        sent = [encode_measurement(measurement(value=value)) for value in shuffled]
        found.add(looks.close(replies(messages, sent)).value)
    assert len(found) == 1


def test_honest_answers_stay_within_the_bound_and_it_is_not_loose(session: TinySession) -> None:
    plan = make_metric()
    found = np.abs(answers(session) - plan.centre)
    assert found.max() < value_bound(plan) < 12 * plan.noise_std + 8 * plan.clip_norm


def test_a_run_takes_its_looks_and_pays_for_each(tmp_path: Path) -> None:
    plan = make_metric(rounds=1)
    strategy = make_strategy(looks=make_looks(plan, every=2))
    nodes = [{"client": name, "state": str(tmp_path)} for name in ("alice", "bob")]
    seen: list[tuple[int, object]] = []
    with LocalGrid(nodes, app=TRAINING) as grid:
        rounds = MemoryRounds(
            strategy,
            initial(),
            on_round=lambda number, *_: seen.append((number, strategy.looks.after(number))),  # type: ignore[union-attr]
        )
        run_rounds(grid, rounds)
    assert [number for number, look in seen if look] == [2]  # of three rounds, every second
    assert strategy.looks is not None
    assert strategy.looks.last is not None
    assert (strategy.looks.last.received, strategy.looks.last.look) == (2, 1)
    charged = read_charges(tmp_path / "alice" / "ledger.db")["alice"]
    assert [e.run_id for e in charged] == ["run-1", "run-1", "run-1:loss", "run-1"]


@pytest.mark.usefixtures("identity")
def test_flowers_own_evaluation_is_the_look(tmp_path: Path) -> None:
    nodes = [{"client": "alice", "state": str(tmp_path)}]
    strategy = make_strategy(looks=make_looks(every=1))
    with LocalGrid(nodes, app=TRAINING) as grid:
        result = strategy.start(grid, to_arrays(initial()), num_rounds=2)
    assert [set(record) for record in result.evaluate_metrics_clientapp.values()] == [{"loss"}] * 2
    assert make_strategy().configure_evaluate(1, to_arrays(initial()), None, grid) == []  # type: ignore[arg-type]


# --- the whole run's epsilon -------------------------------------------------------------------

SETTINGS = PrivacyConfig(epsilon=3.0, sampling_rate=0.1)


def plans(**metrics: object) -> tuple[MetricPlan, object]:
    config = MetricsConfig(metric="loss", **metrics)  # type: ignore[arg-type]
    bought = metric_plan(config, SETTINGS, run_id="r", rounds=4)
    assert bought is not None
    return bought, private_plan(SETTINGS, run_id="r", rounds=4, local_steps=5, metric=bought)


def test_the_noise_is_solved_for_rounds_and_looks_together() -> None:
    bought, plan = plans()
    together = [plan.total_event(), bought.total_event()]  # type: ignore[attr-defined]
    assert 2.99 < epsilon_pld(together, SETTINGS.delta) <= 3.0
    assert epsilon_pld([bought.total_event()], SETTINGS.delta) <= 0.3
    alone = private_plan(SETTINGS, run_id="r", rounds=4, local_steps=5)
    # Solving for the rounds alone, and buying the looks all the same, is caught.
    assert epsilon_pld([alone.total_event(), bought.total_event()], SETTINGS.delta) > 3.0
    assert alone.noise_multiplier < plan.noise_multiplier  # type: ignore[attr-defined]


def test_looks_come_every_so_many_rounds_and_can_be_given_their_noise() -> None:
    bought, _ = plans(every=3, noise_multiplier=20.0, low=1.0, high=5.0)
    assert (bought.rounds, bought.noise_multiplier) == (1, 20.0)
    assert (bought.clip_norm, bought.centre, bought.run_id) == (2.0, 3.0, "r:loss")
    assert metric_plan(MetricsConfig(), SETTINGS, run_id="r", rounds=4) is None
    with pytest.raises(PlanError, match="by themselves"):
        plans(noise_multiplier=0.5)


@pytest.mark.parametrize(
    ("metrics", "privacy", "words"),
    [
        ({"every": 4}, {}, "metrics.every"),
        ({}, {"trust": "none"}, "metrics.metric"),
        (
            {},
            {"trust": "central"},
            "metrics.metric none with central trust, got 'loss': it is paid",
        ),
        ({}, {"noise_multiplier": 1.0}, "metrics.noise_multiplier"),
        ({"epsilon_share": 1.0}, {}, "metrics.epsilon_share"),
        ({"low": 9.0}, {}, "metrics.high"),
        ({"expected_records": 0.0}, {}, "metrics.expected_records"),
    ],
)
def test_settings_that_make_no_sense(
    metrics: dict[str, object], privacy: dict[str, object], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        ExperimentConfig(
            metrics=MetricsConfig(metric="loss", **metrics),  # type: ignore[arg-type]
            privacy=PrivacyConfig(**privacy),  # type: ignore[arg-type]
            federation=FederationConfig(population=10),
        )


@pytest.mark.parametrize("trust", ["central", "none"])
def test_no_plan_but_a_local_one_takes_a_metric(trust: str) -> None:
    bought, plan = plans()
    config = replace(SETTINGS, trust=trust)
    users = FederationConfig(population=10)
    schedule = {"run_id": "r", "rounds": 4, "local_steps": 5}
    assert plan_of_run(SETTINGS, users, metric=bought, **schedule) == plan  # type: ignore[arg-type]
    with pytest.raises(PlanError, match=f"metric None with {trust} trust, got 'loss'"):
        plan_of_run(config, users, metric=bought, **schedule)  # type: ignore[arg-type]


def test_a_claim_covers_the_looks_or_is_none(tmp_path: Path, session: TinySession) -> None:
    plan, bought = make_plan(), make_metric()
    for number in (1, 2):
        answer(session, make_task(number))
        answer_metric(session, make_metric_task(number))
    ledger = tmp_path / "ledger.jsonl"
    export_ledgers([session.state_dir / "ledger.db"], ledger)
    found = support(plan, ledger, metric=bought)
    events = [plan.round_event()] * 2 + [bought.round_event()] * 2
    assert found.guarantee.epsilon_pld == epsilon_pld(events, plan.delta)
    assert (found.rounds, found.looks, found.other_runs) == (2, 2, ())
    assert "2 looks at its loss" in found.guarantee.composition
    with pytest.raises(ClaimError, match="another plan"):
        support(plan, ledger)
    with pytest.raises(ClaimError, match="another plan"):
        support(plan, ledger, metric=make_metric(noise_multiplier=40.0))


def test_a_forecast_sets_the_looks_aside(session: TinySession) -> None:
    plan, bought = make_plan(rounds=1000), make_metric(rounds=1000)
    policy = replace(POLICY, caps=(Cap(epsilon=12.0, delta=1e-5),))
    alone = forecast(policy, plan, (), "tiny").rounds
    beside = forecast(policy, plan, (), "tiny", make_metric(rounds=20)).rounds
    assert 0 < beside < alone
    refused = first_refused_round(policy, bought)
    assert refused is not None
    assert refused > 1
