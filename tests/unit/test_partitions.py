"""Records dealt out to clients: each exactly once, as unlike as was asked for."""

import json

import numpy as np
import pytest

from sordino.client.data.source import open_source
from sordino.core.config import ExperimentConfig
from sordino.core.errors import ConfigError, DataError
from sordino.core.population import PartitionConfig
from sordino.core.settings import build
from sordino.sim.partitions import Holdings, deal, owners_of

LABELS = [f"topic {i % 5}" for i in range(2000)]


def shares(owners, clients):
    """Each client's part of each label."""
    topics = np.array([int(label[-1]) for label in LABELS])
    counts = np.array([np.bincount(topics[owners == c], minlength=5) for c in range(clients)])
    return counts / np.maximum(counts.sum(1, keepdims=True), 1), counts


@pytest.mark.parametrize(
    "how",
    [
        PartitionConfig(kind="iid"),
        PartitionConfig(kind="dirichlet", alpha=0.01),
        PartitionConfig(kind="quantity", alpha=0.01),
        PartitionConfig(kind="size", sizes=(1.0,) * 19 + (1e9,)),
    ],
    ids=lambda how: how.kind,
)
def test_every_record_has_one_client_and_every_client_a_record(how):
    owners = owners_of(LABELS, 20, how)
    assert owners.shape == (2000,)
    assert np.bincount(owners, minlength=20).min() >= 1
    assert set(owners) == set(range(20))
    assert np.array_equal(owners, owners_of(LABELS, 20, how))


def test_iid_clients_are_alike_and_equally_large():
    mixed, counts = shares(owners_of(LABELS, 10, PartitionConfig(kind="iid")), 10)
    assert set(counts.sum(1)) == {200}
    assert np.abs(mixed - 0.2).max() < 0.12  # four standard deviations


def test_a_small_alpha_makes_clients_of_few_topics_and_a_large_one_does_not():
    few, _ = shares(owners_of(LABELS, 10, PartitionConfig(kind="dirichlet", alpha=0.05)), 10)
    many, _ = shares(owners_of(LABELS, 10, PartitionConfig(kind="dirichlet", alpha=1000.0)), 10)
    assert few.max(1).mean() > 0.7
    assert many.max(1).mean() < 0.3


def test_the_parts_of_a_label_are_a_dirichlets():
    # A part's mean is 1/n and its variance (n - 1) / n² / (nα + 1), over many seeds.
    parts = [
        np.bincount(
            owners_of(LABELS, 4, PartitionConfig(kind="quantity", alpha=0.5, seed=seed)),
            minlength=4,
        )[0]
        / 2000
        for seed in range(400)
    ]
    assert np.mean(parts) == pytest.approx(0.25, abs=4 * np.sqrt(0.0625 / 400))
    assert np.var(parts) == pytest.approx(3 / 16 / 3, rel=0.3)


def test_sizes_are_as_asked():
    owners = owners_of(LABELS, 3, PartitionConfig(kind="size", sizes=(1.0, 2.0, 5.0)))
    assert np.bincount(owners).tolist() == [250, 500, 1250]
    _, counts = shares(owners, 3)
    assert (counts > 0).all()


def test_fewer_records_than_clients_are_refused():
    with pytest.raises(DataError, match=r"expected data\.clients <= 2, the records, got 3"):
        owners_of(["a", "b"], 3, PartitionConfig(kind="iid"))


def experiment(source, **partition):
    table = {
        "data": {"source": str(source), "clients": 3, "user_column": "who"},
        "partition": partition,
    }
    return build(ExperimentConfig, table)


@pytest.fixture
def notes(tmp_path):
    path = tmp_path / "notes.jsonl"
    rows = [
        {"who": f"u{i % 7}", "text": f"note {i} on it", "label": i % 2, "more": 1}
        for i in range(40)
    ]
    rows[5] = {"who": "u5", "text": "  ", "label": 1}
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_a_dealt_file_is_read_like_any_other(notes, tmp_path):
    config = experiment(notes, kind="dirichlet", alpha=0.3)
    dealt = deal(config, tmp_path / "cache")
    assert deal(config, tmp_path / "cache") == dealt
    source = open_source(dealt.config.data)
    users = dealt.config.data.users
    texts = [r.text for u in users for d in [source.user(u)] for r in (*d.train, *d.held_out)]
    assert sorted(texts) == sorted(f"note {i} on it" for i in range(40) if i != 5)
    assert dealt.holdings.labels == ("0", "1")
    assert np.array(dealt.holdings.counts).sum(0).tolist() == [20, 19]
    assert dict(zip(users, map(sum, dealt.holdings.counts), strict=True)) == source.users()
    dealt.keep(tmp_path)
    assert Holdings.read(tmp_path) == dealt.holdings


def test_another_seed_deals_otherwise_and_users_are_left_alone(notes, tmp_path):
    one, other = (deal(experiment(notes, kind="iid", seed=s), tmp_path) for s in (0, 1))
    assert one.config.data.source != other.config.data.source
    natural = experiment(notes)
    assert deal(natural, tmp_path).config is natural
    assert Holdings.read(tmp_path) is None


def test_plays_are_the_topics_of_speeches(tmp_path):
    config = build(ExperimentConfig, {"data": {"clients": 5}, "partition": {"kind": "dirichlet"}})
    dealt = deal(config, tmp_path)
    assert "henry-v" in dealt.holdings.labels
    assert len(open_source(dealt.config.data).users()) == 5


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (b'{"text": "a"}', r"line 1 has no label in column 'label': its columns are text"),
        (b'{"label": 1}', "has no text, no prompt and completion"),
        (b"\xff\xfe", "is not UTF-8"),
        (b'{"text": "", "label": 1}', "has no usable record: nothing can be dealt out"),
    ],
)
def test_bad_rows_are_named(tmp_path, row, words):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(row)
    with pytest.raises(DataError, match=words):
        deal(experiment(path, kind="dirichlet"), tmp_path)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"partition": {"kind": "iid"}, "data": {"users": ["a"]}}, "data.users empty with"),
        ({"partition": {"kind": "size"}}, "partition.sizes given with partition.kind = size"),
        ({"partition": {"sizes": [1]}}, "partition.sizes empty with partition.kind = user"),
        ({"partition": {"kind": "size", "sizes": [1, 2]}}, r"as many as data\.clients \(8\)"),
        ({"partition": {"kind": "size", "sizes": [1, 0]}}, "finite and > 0, each"),
        ({"partition": {"alpha": 0.0}}, "partition.alpha finite and > 0, got 0.0"),
        ({"partition": {"seed": -1}}, "partition.seed >= 0, got -1"),
        ({"partition": {"kind": "label"}}, "partition.kind one of user, iid, dirichlet"),
    ],
)
def test_impossible_settings_are_refused(table, words):
    with pytest.raises(ConfigError, match=words):
        build(ExperimentConfig, table)
