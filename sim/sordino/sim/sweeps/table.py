"""The one table of a sweep: a row a run, in CSV and Parquet, with all that a figure of ε needs."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sordino.core.durable import write_whole
from sordino.server.report import RunReport, UtilityFigures
from sordino.sim.sweeps.outcome import Finished, SweepResult

Row = dict[str, Any]


def write_table(result: SweepResult) -> tuple[Path, Path]:
    """Write table.csv and table.parquet; each is whole or absent."""
    paths = result.folder / "table.csv", result.folder / "table.parquet"
    found = rows(result)
    write_whole(paths[0], to_csv(found))
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(found), buffer)
    write_whole(paths[1], buffer.getvalue())
    return paths


def rows(result: SweepResult) -> list[Row]:
    """A row a run: what it sets, what it promises, what it gained and what it cost."""
    return [
        {
            "run": run.cell.name,
            "folder": str(run.folder.relative_to(result.folder)),
            **{path: _plain(run.cell.settings.get(path)) for path in result.settings},
            "seed": run.cell.seed,
            **_promise(run.report),
            **_utility(run),
            "leakage": run.report.leakage.status,
            "audited_epsilon_lower": run.leaked,
            **_cost(run),
        }
        for run in result.runs
    ]


def to_csv(found: list[Row]) -> str:
    """The rows as CSV; what isn't known, or not bounded, is empty."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(found[0]) if found else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return stream.getvalue()


def _promise(report: RunReport) -> Row:
    given, noise = report.guarantee, report.noise
    return {
        "trust": given.trust,
        "unit": given.unit,
        "epsilon": given.epsilon.pld,
        "delta": given.delta,
        "neighbouring": given.neighbouring,
        "sampling": given.sampling,
        "composition": given.composition,
        "accountant": given.accountant,
        "other_unit": given.other.unit,
        "other_epsilon": given.other.epsilon,
        "noise_source": noise.source,
        "noise_multiplier": noise.noise_multiplier,
        "clip_norm": noise.clip_norm,
        "sampling_rate": noise.sampling_rate,
        "steps": noise.steps,
        "clip_fraction": noise.clip_fraction,
        "update_snr": noise.update_snr,
    }


def _utility(run: Finished) -> Row:
    beside = (run.beside or run.report).utility
    judged = run.report.judged
    return {
        "loss_before": None if judged is None else judged.loss_before,
        **_gain("", judged),
        **_gain("without_privacy_", beside.no_privacy),
        **_gain("alone_without_noise_", beside.no_federation),
    }


def _gain(prefix: str, figures: UtilityFigures | None) -> Row:
    gain = None if figures is None else figures.interval
    return {
        f"{prefix}loss_after": figures and figures.loss_after,
        f"{prefix}gain": gain and gain.estimate,
        f"{prefix}gain_low": gain and gain.low,
        f"{prefix}gain_high": gain and gain.high,
    }


def _cost(run: Finished) -> Row:
    cost = run.report.cost
    simulated_s, simulated_j = run.simulated or (None, None)
    return {
        "bytes_up": cost.bytes_up,
        "bytes_down": cost.bytes_down,
        "wall_s": cost.wall_s,
        "processor_s": run.processor_s,
        "peak_rss_mb": cost.peak_rss_mb,
        "tokens_per_s": cost.tokens_per_s,
        "joules": cost.energy.joules,
        "energy_source": cost.energy.source,
        "simulated_wall_s": simulated_s,
        "simulated_joules": simulated_j,
    }


def _plain(value: Any) -> Any:
    """A setting's value as one cell of a table."""
    return json.dumps(value) if isinstance(value, list | tuple) else value
