"""The local steps: Opacus' optimizer under the plan, empty batches, what is seen, what leaves."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from opacus.optimizers import DPOptimizer
from support import tiny
from support.rounds import Still, mechanism

from sordino.client import train
from sordino.client.train import Observations, PlanOptimizer, train_round
from sordino.core.adapters import adapter_manifest, trained_manifest
from sordino.core.config import LoraConfig, PerformanceConfig, TrainConfig
from sordino.core.errors import ModelError, PlanError
from sordino.privacy.ledger import Ledger
from sordino.privacy.noise import seeded_source
from sordino.privacy.plan import (
    CentralPlan,
    NoPrivacyPlan,
    open_round_without_privacy,
    open_update,
)

LORA = LoraConfig(rank=4, alpha=8.0)
RECORDS = [tiny.record(8 + i % 9, i) for i in range(24)]


def run(opened, *, aggregation="ffa", records=RECORDS, round_number=1, micro_batch=4, **settings):
    manifest = adapter_manifest(tiny.CONFIG, LORA)
    tensors = tiny.adapter_tensors(manifest)
    trained = trained_manifest(manifest, aggregation, 1).names
    settings = {"learning_rate": 0.1, "local_steps": opened.steps, **settings}
    update, seen = train_round(
        tiny.decoder(),
        tensors,
        trained,
        records,
        opened,
        round_number=round_number,
        lora=LORA,
        train=TrainConfig(**settings),
        performance=PerformanceConfig(micro_batch=micro_batch),
    )
    return tensors, trained, update, seen


def parameters_with_samples(seed=0, records=6):
    generator = torch.Generator().manual_seed(seed)
    made = [torch.nn.Parameter(torch.zeros(s)) for s in ((5, 3), (7,))]
    for parameter in made:
        parameter.grad_sample = torch.randn((records, *parameter.shape), generator=generator)
    return made


def test_the_clipped_sum_is_stock_opacus_s(tmp_path):
    ours, theirs = parameters_with_samples(), parameters_with_samples()
    opened = mechanism(tmp_path, Still(), clip_norm=2.0)
    opened.sample(6)
    mine = PlanOptimizer(torch.optim.SGD(ours, lr=1.0), opened, Observations())
    stock = DPOptimizer(
        torch.optim.SGD(theirs, lr=1.0),
        noise_multiplier=0.0,
        max_grad_norm=2.0,
        expected_batch_size=3,
    )
    mine.clip_and_accumulate()
    stock.clip_and_accumulate()
    # Ours lies on the plan's grid, each of the six records rounded to it by itself.
    step = opened.plan.grid_step(sum(p.numel() for p in ours))
    for a, b in zip(ours, theirs, strict=True):
        gap = (a.summed_grad - b.summed_grad).abs().max()
        assert gap <= 6 * step / 2 + 1e-5
        assert step < 0.01 * b.summed_grad.abs().max()


def test_noise_has_the_plan_s_scale_and_is_divided_by_the_public_constant(tmp_path):
    """An update of no records is noise alone, of standard deviation σC/D; half of it is caught."""
    opened = mechanism(tmp_path, seeded_source(7), clip_norm=0.5, noise_multiplier=2.0, divisor=4.0)
    _, _, update, _ = run(opened, records=[], learning_rate=1.0)
    values = np.concatenate([u.ravel() for u in update.values()])
    std = 2.0 * 0.5 / 4.0
    slack = 5 / np.sqrt(2 * len(values))  # five standard errors of a standard deviation
    assert abs(values.std() / std - 1) < slack
    assert abs(values.std() / (std / 2) - 1) > slack
    assert abs(values.mean()) < 5 * std / np.sqrt(len(values))


def test_empty_batches_are_steps(tmp_path):
    opened = mechanism(tmp_path, steps_per_round=5, sampling_rate=1e-9)
    _, _, update, seen = run(opened)
    assert seen.batch_sizes == [0] * 5
    assert opened.finished
    assert all(np.abs(u).max() > 0 for u in update.values())
    assert seen.opacus_steps == [(1.0, 1e-9, 5)]


def test_batches_are_poisson(tmp_path):
    opened = mechanism(tmp_path, steps_per_round=60, sampling_rate=0.3)
    _, _, _, seen = run(opened)
    sizes = np.array(seen.batch_sizes)
    expected, variance = 24 * 0.3, 24 * 0.3 * 0.7
    assert abs(sizes.mean() - expected) < 5 * np.sqrt(variance / 60)
    assert len(set(seen.batch_sizes)) > 3  # a batch of fixed size is another mechanism


def test_frozen_tensors_do_not_move_and_trained_ones_do(tmp_path):
    tensors, trained, update, _ = run(mechanism(tmp_path))
    assert set(update) == set(trained)
    assert all(name.endswith("lora_B.weight") for name in update)
    assert all(update[name].dtype == np.float32 for name in update)
    assert all(update[name].shape == tensors[name].shape for name in update)


def test_without_noise_and_clip_the_steps_are_plain_sgd():
    plan = NoPrivacyPlan(run_id="r", rounds=1, steps_per_round=1, sampling_rate=1.0, divisor=24.0)
    _, _, update, seen = run(open_round_without_privacy(plan, seeded_source(0)), learning_rate=0.5)
    assert seen.batch_sizes == [24]
    assert seen.clipped == 0
    assert seen.opacus_steps == []
    manifest = adapter_manifest(tiny.CONFIG, LORA)
    tensors = tiny.adapter_tensors(manifest)
    base = tiny.decoder()
    total = dict.fromkeys(update, 0.0)
    for record in RECORDS:
        _, gradients = tiny.plain_gradients(base, tensors, list(update), record, 2.0)
        for name in update:
            total[name] = total[name] + gradients[name].numpy()
    for name, value in update.items():
        wanted = -0.5 * total[name] / 24.0
        assert np.linalg.norm(value - wanted) <= 1e-4 * np.linalg.norm(wanted)


def test_training_lowers_the_loss_on_its_own_records():
    plan = NoPrivacyPlan(run_id="r", rounds=1, steps_per_round=20, sampling_rate=1.0, divisor=24.0)
    tensors, _, update, _ = run(
        open_round_without_privacy(plan, seeded_source(0)), optimizer="adam", learning_rate=0.02
    )
    base = tiny.decoder()
    before = train.evaluate(base, train.LoraAdapter(tensors, scale=2.0), RECORDS)
    moved = {**tensors, **{n: tensors[n] + update[n] for n in update}}
    after = train.evaluate(base, train.LoraAdapter(moved, scale=2.0), RECORDS)
    assert after[:, 0].sum() < 0.9 * before[:, 0].sum()


@pytest.mark.parametrize("round_number", [1, 2])
def test_the_rate_follows_the_run_s_step_and_not_the_round_s(round_number):
    """With gradients that don't depend on the weights, an update is the sum of the rates."""
    plan = NoPrivacyPlan(run_id="r", rounds=2, steps_per_round=2, sampling_rate=1.0, divisor=1.0)
    opened = open_round_without_privacy(plan, seeded_source(0))
    honest = opened.release
    opened.release = lambda total: np.ones_like(honest(total))
    settings = {"learning_rate": 8.0, "schedule": "linear"}
    _, _, update, _ = run(opened, round_number=round_number, **settings)
    rates = {1: 8.0 + 6.0, 2: 4.0 + 2.0}[round_number]
    for value in update.values():
        np.testing.assert_allclose(value, -rates, rtol=1e-5)


def test_a_retry_of_a_seeded_round_makes_the_same_views(tmp_path):
    """And another seed, or no views, another update."""

    def update(seed=3, views=3):
        opened = mechanism(tmp_path, seeded_source(seed), steps_per_round=2, noise_multiplier=0.01)
        return np.concatenate([u.ravel() for u in run(opened, views=views)[2].values()])

    first = update()
    assert np.array_equal(first, update())
    assert not np.array_equal(first, update(seed=4))
    assert not np.array_equal(first, update(views=1))


def test_views_work_under_central_trust(tmp_path):
    plan = CentralPlan(
        run_id="central",
        rounds=1,
        steps_per_round=2,
        noise_multiplier=1.0,
        clip_norm=1.0,
        delta=1e-5,
        population=5,
        cohort=5,
        sampling="none",
        sampling_rate=1.0,
        batch_rate=0.5,
        batch_divisor=12.0,
    )
    updates = []
    for views in (1, 2):
        charge = Ledger(tmp_path / f"{views}.db", "client").charge(plan, 1, "data")
        opened = open_update(plan, charge, seeded_source(0))
        updates.append(np.concatenate([u.ravel() for u in run(opened, views=views)[2].values()]))
    assert np.isfinite(updates[1]).all()
    assert not np.array_equal(*updates)


def test_views_draw_nothing_from_torch_s_or_numpy_s_own_generators(tmp_path):
    torch.manual_seed(0)
    before = torch.get_rng_state().clone(), np.random.get_state()[1].copy()
    run(mechanism(tmp_path), views=2)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])


def test_micro_batches_do_not_change_the_views(tmp_path):
    updates = []
    for micro_batch in (1, 5, 64):
        opened = mechanism(tmp_path, Still(), clip_norm=0.5, steps_per_round=2)
        updates.append(run(opened, views=3, micro_batch=micro_batch)[2])
    for name, value in updates[0].items():
        for other in updates[1:]:
            np.testing.assert_allclose(other[name], value, rtol=1e-3, atol=1e-5)


def test_an_update_that_is_not_finite_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"lower train\.learning_rate"):
        run(mechanism(tmp_path, steps_per_round=3, clip_norm=1e3), learning_rate=1e38)


def test_more_steps_than_were_charged_are_refused(tmp_path):
    opened = mechanism(tmp_path)
    run(opened)
    with pytest.raises(PlanError):
        opened.sample(3)


def test_observations_hold_nothing_that_a_reply_sends():
    from sordino.core.records import Receipt, Update

    sent = {f.name for record in (Update, Receipt) for f in fields(record)}
    assert not sent & {f.name for f in fields(Observations)}
