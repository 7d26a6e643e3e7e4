"""In float32, as a device computes: what one record does to the rounding of the others beside it.

Matrix products may round a row differently when other rows are beside it. So a record that joins a
batch may change the others' gradients in their last bits, which no clip bounds. What the plan
accounts beyond the clip norm has room for that; here it is held against what happens.
"""

import numpy as np
import pytest
from support import exact
from support.rounds import Still, mechanism, plan

from sordino.client.session import open_session
from sordino.client.train import train_round
from sordino.core.adapters import adapter_manifest, complete_adapter, trained_manifest
from sordino.core.config import LoraConfig, PerformanceConfig, TrainConfig

LORA = LoraConfig(targets=("v_proj", "o_proj", "down_proj"))
C = 0.3


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    folder = tmp_path_factory.mktemp("state")
    return open_session({"user": "richard-iii/GLOUCESTER", "state-dir": str(folder)})


@pytest.fixture(scope="module")
def clipped_sum(client, tmp_path_factory):
    """The sum of a real step of the demo over all of some records, before its noise."""
    manifest = adapter_manifest(client.architecture, LORA)
    trained = trained_manifest(manifest, "ffa", 1)
    zeros = {t.name: np.zeros(t.shape, np.float32) for t in trained.tensors}
    tensors = complete_adapter(zeros, manifest, LORA.init_seed)

    def step(records, micro_batch, *, recompute=False):
        with exact.sums_before_noise() as sums:
            train_round(
                client.base.decoder,
                tensors,
                trained.names,
                records,
                mechanism(tmp_path_factory.mktemp("round"), Still(), clip_norm=C, divisor=30.0),
                round_number=1,
                lora=LORA,
                train=TrainConfig(learning_rate=1.0, local_steps=1),
                performance=PerformanceConfig(micro_batch=micro_batch, checkpoint=recompute),
            )
        return sums[0]

    return step


def test_beside_others_the_sum_stays_within_what_is_accounted(client, clipped_sum):
    some = client.records[:24]
    before = clipped_sum(some, 16)
    made = plan(clip_norm=C)
    limit = made.sensitivity(before.size)
    rounding = made.grid_step(before.size) * np.sqrt(before.size) / 2  # of the record itself
    for extra in client.records[24:27]:
        moved = clipped_sum([*some, extra], 16) - before
        others = np.linalg.norm(moved - clipped_sum([extra], 16))
        assert 0.999 * C < np.linalg.norm(moved) <= limit
        assert others <= (limit - C - rounding) / 2  # half of what is left for it


def test_one_at_a_time_no_other_record_changes_by_a_bit(client, clipped_sum):
    some, extra = client.records[:8], client.records[24]
    alone = clipped_sum([extra], 1)
    both = [*some[:4], extra, *some[4:]]
    others = clipped_sum(some, 1)
    assert np.array_equal(clipped_sum(both, 1) - others, alone)
    # A limit on memory may have layers computed twice for the sake of one long record.
    assert np.array_equal(clipped_sum(both, 1, recompute=True) - others, alone)
