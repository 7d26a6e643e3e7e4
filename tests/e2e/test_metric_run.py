"""A whole simulated run that buys a metric under an adaptive clip norm."""

import json

import pytest

from sordino.core.config import ExperimentConfig
from sordino.core.settings import build
from sordino.privacy.plan import decode_metric_plan, decode_plan, verify_ledger
from sordino.server.report import claim_of_run, from_json
from sordino.sim.run import resume_run, simulate

CONFIG = {
    "data": {"clients": 2, "max_tokens": 32, "share": 0.1},
    "lora": {"rank": 2, "targets": ["v_proj"]},
    "train": {"local_steps": 1},
    "privacy": {"clip": "adaptive", "clip_norm": 0.3, "sampling_rate": 0.25},
    "metrics": {"metric": "accuracy", "every": 2},
    "federation": {"rounds": 3},
    "performance": {"workers": 0},
}


@pytest.mark.slow
def test_a_run_buys_its_looks_within_its_epsilon(tmp_path):
    result = simulate(build(ExperimentConfig, CONFIG), tmp_path / "run")
    folder = result.folder
    report = from_json((folder / "report.json").read_text())
    (row,) = report.metrics
    assert (row.metric, row.round, row.answers, row.unit) == ("accuracy", 2, 2, "record")
    assert row.value is not None
    assert 0 < row.epsilon <= 0.8
    assert report.guarantee.epsilon.pld <= 8.0
    assert "1 looks at its accuracy" in report.guarantee.composition
    assert report.rounds[-1].epsilon == report.guarantee.epsilon.pld
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["value"] for line in lines if line["event"] == "metric"] == [row.value]
    assert "Paid metric" in (folder / "report.html").read_text()

    plan = decode_plan((folder / "state" / "private" / "plan.json").read_bytes())
    bought = decode_metric_plan((folder / "state" / "private" / "metric.json").read_bytes())
    verdict = verify_ledger(folder / "ledger.jsonl", max_epsilon=8.0)
    assert verdict.ok, verdict.defects
    (book, _) = verdict.books.values()
    assert [e.plan_sha256 for e in book.reserved] == [plan.sha256] * 2 + [
        bought.sha256,
        plan.sha256,
    ]
    claim = claim_of_run(folder)
    assert claim.epsilon == report.guarantee.epsilon.pld
    assert "1 looks at its accuracy" in claim.composition
    assert claim.mechanism["kind"] == "adaptive-clip-gaussian"
    assert "agrees" in claim.second_opinion

    before = (folder / "ledger.jsonl").read_bytes()
    resume_run(folder)
    assert (folder / "ledger.jsonl").read_bytes() == before  # nothing is bought twice
