from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from safetensors.numpy import load_file
from support import federation
from support.federation import (
    ARCHITECTURE,
    LORA,
    MANIFEST,
    SCRIPTED,
    TRAIN,
    filled,
    initial,
    make_plan,
    make_strategy,
    make_task,
    open_plan,
    update_for,
)

from sordino.core import adapters
from sordino.core import app as flower
from sordino.core.config import FederationConfig, LoraConfig, TrainConfig
from sordino.core.errors import ConfigError, ModelError, PlanError, RoundFailedError
from sordino.core.wire import decode_task, encode_update
from sordino.server import app as server_app
from sordino.server.rounds import MemoryRounds, run_rounds
from sordino.server.strategy import SordinoStrategy, to_arrays
from sordino.sim.grid import LocalGrid


@pytest.fixture(autouse=True)
def identity() -> Iterator[None]:
    with flower.task_identity(run_id=1, node_id=1):
        yield


def answers(messages: Iterable[Message], value: float) -> list[Message]:
    """Replies as a grid would bring them."""
    replies = []
    for number, message in enumerate(messages):
        flower.set_message_id(message, f"m{number}")
        task = decode_task(flower.from_records(message.content))
        update = update_for(task, filled(value, task.round, task.lora))
        replies.append(Message(flower.to_records(encode_update(update)), reply_to=message))
    return replies


def test_time_to_live_is_the_rounds_timeout() -> None:
    (message,) = make_strategy(timeout_s=7.5).open_round(2, initial(), [9])
    assert message.metadata.ttl == 7.5
    assert message.metadata.group_id == "2"
    assert message.metadata.dst_node_id == 9


def test_a_message_of_another_round_is_never_counted() -> None:
    strategy = make_strategy(min_updates=1)
    messages = strategy.open_round(1, initial(), [2, 3])
    replies = answers(messages, 0.01)
    twice = [replies[0], replies[0], replies[1]]
    adapter, report = strategy.close_round(twice)
    assert (report.received, report.reasons) == (2, {"unexpected": 1})
    name = next(n for n in MANIFEST.names if not adapters.is_lora_a(n))
    assert np.allclose(adapter[name], 0.01)


def test_who_stays_silent_is_named() -> None:
    strategy = make_strategy()
    messages = strategy.open_round(1, initial(), [2, 3, 4])
    _, report = strategy.close_round(answers(messages, 0.01)[1:])
    assert [(d.node_id, d.reason) for d in report.dropped] == [(2, "no-reply")]


def test_a_cohort_of_nobody_fails() -> None:
    strategy = make_strategy()
    assert not strategy.open_round(1, initial(), [])
    with pytest.raises(RoundFailedError, match="got 0 of 0"):
        strategy.close_round([])
    with pytest.raises(PlanError, match="open round"):
        strategy.close_round([])


def test_no_round_beyond_the_plan() -> None:
    with pytest.raises(PlanError, match=r"in 1\.\.3"):
        make_strategy().open_round(4, initial(), [2])


def test_no_node_is_asked_twice() -> None:
    with pytest.raises(PlanError, match="without repeats"):
        make_strategy().open_round(1, initial(), [2, 3, 2])


def test_the_plans_steps_are_the_optimizers() -> None:
    with pytest.raises(PlanError, match="steps_per_round"):
        SordinoStrategy(
            plan=make_plan(steps_per_round=5),
            manifest=MANIFEST,
            base_sha256=federation.BASE,
            lora=LORA,
            train=TRAIN,
            federation=FederationConfig(),
        )


@pytest.mark.parametrize("aggregation", ["ffa", "rolora", "fedit"])
def test_only_what_trains_travels(aggregation: str) -> None:
    lora = LoraConfig(aggregation=aggregation, rank=LORA.rank, targets=LORA.targets)  # type: ignore[arg-type]
    strategy = make_strategy(lora=lora)
    adapter, moved = initial(), set()
    for number in (1, 2, 3):
        messages = strategy.open_round(number, adapter, [2, 3])
        task = decode_task(flower.from_records(messages[0].content))
        assert set(task.tensors) == moved
        adapter, _ = strategy.close_round(answers(messages, 0.01))
        moved |= set(strategy.trained(number).names)
    assert any(adapters.is_lora_a(n) for n in moved) == (aggregation != "ffa")


def test_memory_does_not_grow_with_replies() -> None:
    strategy = make_strategy()
    alive, most = 0, 0

    class Reply(Message):
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def stream(messages: list[Message]) -> Iterator[Message]:
        nonlocal alive, most
        for message in messages:
            (reply,) = answers([message], 0.001)
            flower.set_message_id(message, str(message.metadata.dst_node_id))
            reply = Reply(reply.content, reply_to=message)
            alive, most = alive + 1, max(most, alive + 1)
            yield reply

    messages = list(strategy.open_round(1, initial(), range(2, 42)))
    for message in messages:
        flower.set_message_id(message, str(message.metadata.dst_node_id))
    _, report = strategy.close_round(stream(messages))
    assert report.received == 40
    assert most <= 3


def test_flowers_own_loop_gives_the_same_adapter() -> None:
    with LocalGrid([{"value": 2.0**-10}, {"value": 2.0**-9}], app=SCRIPTED) as grid:
        rounds = MemoryRounds(make_strategy(), initial())
        run_rounds(grid, rounds)
        ours = rounds.adapter
        result = make_strategy().start(grid, to_arrays(initial()), num_rounds=3, timeout=60)
    theirs = {name: array.numpy() for name, array in result.arrays.items()}
    assert all(np.array_equal(ours[n], theirs[n]) for n in MANIFEST.names)


def test_a_cohort_can_be_chosen_and_replies_be_watched() -> None:
    seen: list[int] = []
    reports = []
    with LocalGrid([{"value": 0.001}] * 4, app=SCRIPTED) as grid:
        rounds = MemoryRounds(
            make_strategy(),
            initial(),
            node_ids=[3, 5],
            start_round=3,
            on_round=lambda *r: reports.append(r),
        )
        run_rounds(grid, rounds, on_reply=seen.append)
    assert sorted(seen) == [3, 5]
    assert [(r[0], r[2].sent) for r in reports] == [(3, 2)]


def test_the_bound_is_of_the_tensors_that_train() -> None:
    lora = LoraConfig(aggregation="rolora", rank=LORA.rank, targets=LORA.targets)
    strategy = make_strategy(lora=lora)
    sizes = [strategy.trained(n).parameter_count for n in (1, 2)]
    assert sizes[0] != sizes[1]
    assert (strategy.norm_bound(1) < strategy.norm_bound(2)) == (sizes[0] < sizes[1])


# --- the ServerApp -----------------------------------------------------------------------------


@pytest.fixture
def run_config(tmp_path: Path) -> dict[str, object]:
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text(json.dumps(ARCHITECTURE))
    (base / "model.gguf").write_bytes(b"weights")
    return {
        "sordino-config": "",
        "sordino-base": str(base),
        "sordino-base-sha256": federation.BASE,
        "sordino-out": str(tmp_path / "out"),
        "sordino-nodes": 2,
        "federation.rounds": 2,
        "federation.min_updates": 2,
        "lora.rank": LORA.rank,
        "lora.targets": ",".join(LORA.targets),
        "train.local_steps": 3,
        "privacy.noise_multiplier": 1.0,
        "privacy.sampling_rate": 0.5,
        "privacy.expected_batch": 4.0,
    }


def serve(run_config: dict[str, object], values: list[float], run_id: int = 5) -> None:
    with LocalGrid([{"value": v} for v in values], app=SCRIPTED) as grid:
        server_app.app(grid, Context(run_id, 1, {}, RecordDict(), run_config))  # type: ignore[arg-type]


def test_the_server_app_writes_what_peft_loads(run_config: dict[str, object]) -> None:
    # Scripted clients echo another plan's hash unless the run's plan is theirs: they decode it.
    serve(run_config, [2.0**-10, 2.0**-9])
    out = Path(str(run_config["sordino-out"]))
    saved = load_file(out / "adapter" / "adapter_model.safetensors")
    assert set(saved) == set(MANIFEST.names)
    config = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["target_modules"]) == (2, ["down_proj", "q_proj"])
    rounds = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [(r["round"], r["received"], r["dropped"]) for r in rounds] == [(1, 2, {}), (2, 2, {})]


def test_the_server_app_goes_on_where_it_stopped(run_config: dict[str, object]) -> None:
    serve(run_config, [2.0**-10, 2.0**-9])
    out = Path(str(run_config["sordino-out"]))
    whole = load_file(out / "adapter" / "adapter_model.safetensors")
    resumed = {**run_config, "sordino-out": str(out.parent / "resumed")}
    with pytest.raises(RoundFailedError):
        serve_until_round_two(resumed)
    serve(resumed, [2.0**-10, 2.0**-9], run_id=6)
    again = load_file(out.parent / "resumed" / "adapter" / "adapter_model.safetensors")
    assert all(np.array_equal(whole[n], again[n]) for n in whole)
    lines = (out.parent / "resumed" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == [1, 2]


def test_the_server_app_does_not_go_on_under_another_plan(run_config: dict[str, object]) -> None:
    serve(run_config, [2.0**-10, 2.0**-9])
    with pytest.raises(ConfigError, match="another plan"):
        serve({**run_config, "privacy.noise_multiplier": 0.5}, [2.0**-10, 2.0**-9])


def serve_until_round_two(run_config: dict[str, object]) -> None:
    class Failing(LocalGrid):
        rounds = 0

        def send_and_receive(self, messages, *, timeout=None):  # type: ignore[no-untyped-def]
            self.rounds += 1
            return super().send_and_receive(messages if self.rounds == 1 else [], timeout=timeout)

    with Failing([{"value": 2.0**-10}, {"value": 2.0**-9}], app=SCRIPTED) as grid:
        server_app.app(grid, Context(5, 1, {}, RecordDict(), run_config))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"federation.runds": 1}, ConfigError, "did you mean rounds"),
        ({"surprise": 1}, ConfigError, "surprise"),
        ({"sordino-nodes": 0}, None, ""),
        ({"sordino-nodes": -1}, ConfigError, "sordino-nodes"),
        ({"sordino-base": ""}, ConfigError, "sordino-base is required"),
        ({"sordino-base": "/nowhere"}, ModelError, "can't read"),
        ({"sordino-config": "/nowhere.toml"}, ConfigError, "can't read"),
        ({"sordino-config": "[lora\nrank=1"}, ConfigError, "not valid TOML"),
        ({"privacy.trust": "central"}, ConfigError, "trust"),
    ],
)
def test_run_config_is_read_strictly(
    run_config: dict[str, object],
    change: dict[str, object],
    error: type[Exception] | None,
    words: str,
) -> None:
    config = {**run_config, **change}
    if error is None:
        assert server_app.read_run_config(config).nodes == 2  # the minimum of updates
        return
    with pytest.raises(error, match=words):
        server_app.read_run_config(config)


def test_run_config_takes_an_experiments_toml(
    run_config: dict[str, object], tmp_path: Path
) -> None:
    text = "[lora]\nrank = 4\nalpha = 3.0\n[train]\nlearning_rate = 0.25\n"
    (tmp_path / "e.toml").write_text(text)
    for given in (text, str(tmp_path / "e.toml")):
        settings = server_app.read_run_config({**run_config, "sordino-config": given})
        assert settings.experiment.lora.rank == LORA.rank  # a key of its own counts more
        assert settings.experiment.lora.alpha == 3.0
        assert settings.experiment.train == TrainConfig(learning_rate=0.25, local_steps=3)


def test_the_bases_hash_is_its_files(run_config: dict[str, object]) -> None:
    settings = server_app.read_run_config({**run_config, "sordino-base-sha256": ""})
    assert settings.base_sha256.startswith("9a129038")
    Path(str(run_config["sordino-base"]), "second.gguf").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"one \.gguf file"):
        server_app.read_run_config({**run_config, "sordino-base-sha256": ""})


def test_waiting_for_nodes_has_an_end() -> None:
    with (
        LocalGrid([{"value": 1.0}], app=SCRIPTED) as grid,
        pytest.raises(RoundFailedError, match="expected 2 nodes"),
    ):
        server_app.wait_for_nodes(grid, 2, 0.0)


def test_without_privacy_is_a_strategy_of_its_own_plan() -> None:
    task = make_task(plan=open_plan())
    strategy = make_strategy(open_plan())
    assert strategy.task(1, initial()).plan == task.plan
