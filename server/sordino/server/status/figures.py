"""The figures in Prometheus' text format, 0.0.4. docs/operators.md says what each means."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Final

from sordino.server.operator.tables import Table
from sordino.server.status.snapshot import Snapshot

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

Sample = tuple[Mapping[str, object], float]
_MS: Final = 1000


@dataclass(frozen=True)
class Metric:
    """A figure with its samples.

    Attributes:
        name: What it is called, `sordino_` before it.
        kind: `gauge` or `counter`.
        meaning: In a line.
        samples: Labels and a value each.
    """

    name: str
    kind: str
    meaning: str
    samples: tuple[Sample, ...] = field(default=())

    def text(self) -> str:
        """Its lines; none without a sample."""
        if not self.samples:
            return ""
        name = f"sordino_{self.name}"
        lines = [f"# HELP {name} {self.meaning}", f"# TYPE {name} {self.kind}"]
        lines += [f"{name}{_labels(labels)} {_number(value)}" for labels, value in self.samples]
        return "\n".join(lines) + "\n"


def render(now: Snapshot) -> str:
    """All figures of a snapshot."""
    return "".join(metric.text() for metric in (*_machine(now), *_runs(now), *_service(now)))


def _machine(now: Snapshot) -> Iterable[Metric]:
    ends = now.certificate_ends_ms / _MS
    holding = tuple(({"reason": one.reason}, 1.0) for one in now.alarms if one.at_ms is None)
    states = _by("state", now.devices)
    yield Metric("info", "gauge", "1, with the version.", (({"version": version("sordino")}, 1),))
    yield _gauge("ready", "Whether calls are taken.", now.ready)
    yield Metric("devices", "gauge", "Devices by state.", states)
    yield Metric("runs", "gauge", "Runs by state.", _by("state", now.run_states))
    yield Metric("alarm", "gauge", "1 for what is wrong with the machine now.", holding)
    yield _gauge("events", "Number of the last event.", now.events)
    yield _gauge("disk_free_bytes", "What the disk has left.", now.free_bytes)
    yield _gauge("artefact_bytes", "What the coordinator's files take.", now.artefact_bytes)
    yield _gauge("certificate_end_seconds", "When the coordinator's certificate ends.", ends)


def _runs(now: Snapshot) -> Iterable[Metric]:
    runs = [one.run for one in now.runs]
    newest = [one.rounds[0] for one in now.runs if one.rounds]
    told = [one for one in newest if one["asked"] is not None]
    whole = tuple(_epsilon(run, one) for run in runs for one in run["epsilon"])
    yield _of_runs("run_rounds_done", "Rounds that ended with an aggregate.", runs, "rounds_done")
    yield _of_runs("run_rounds_planned", "Rounds that were announced.", runs, "rounds_planned")
    yield Metric(
        "run_epsilon",
        "gauge",
        "Bound of all announced rounds; +Inf: not bounded. The labels are part of the claim.",
        whole,
    )
    yield Metric(
        "run_metric",
        "gauge",
        "The newest noised mean of what devices sold of the metric.",
        tuple(
            ({"run": one.run["run_id"], "metric": one.looks[0]["metric"]}, one.looks[0]["value"])
            for one in now.runs
            if one.looks and one.looks[0]["value"] is not None
        ),
    )
    yield _of_runs("round", "Number of the newest round.", newest, "round")
    yield _of_runs("round_asked", "Devices that the newest round asked.", told, "asked")
    yield _of_runs("round_received", "Updates that it has accepted.", told, "received")
    yield Metric(
        "round_dropped",
        "gauge",
        "Devices of the newest round that brought none, by reason.",
        tuple(
            ({"run": one["run_id"], "reason": reason}, float(count))
            for one in told
            for reason, count in one["dropped"].items()
        ),
    )


def _service(now: Snapshot) -> Iterable[Metric]:
    told = now.service
    yield _gauge("start_seconds", "When the service began.", told.started_unix_ms / _MS)
    yield _gauge("online", "Devices that could be asked now.", told.online)
    if now.secret:  # whoever takes part waits for nothing, calls and sends
        return
    failures = tuple(
        ({"method": _short(method), "word": word}, float(count))
        for (method, word), count in sorted(told.failures.items())
    )
    calls = _by("method", {_short(method): count for method, count in told.calls.items()})
    yield _gauge("connections", "Connections with a call under way.", told.connections)
    yield _gauge("calls_open", "Calls under way.", told.calls_open)
    yield _gauge("waiting", "Devices that wait for work.", told.pulling)
    yield _gauge("uploads_open", "Updates that are being sent.", told.uploads_open)
    yield Metric("calls_total", "counter", "Calls that ended.", calls)
    yield Metric("failures_total", "counter", "Those that failed, by word.", failures)
    yield _counter("received_bytes_total", "Bytes of messages that came.", told.bytes_up)
    yield _counter("sent_bytes_total", "Bytes of messages that went.", told.bytes_down)
    yield _counter("updates_accepted_total", "Updates acknowledged.", told.accepted)
    rejected = _by("word", told.rejected)
    yield Metric("updates_rejected_total", "counter", "Updates refused, by word.", rejected)


def _gauge(name: str, meaning: str, value: float) -> Metric:
    return Metric(name, "gauge", meaning, (({}, float(value)),))


def _counter(name: str, meaning: str, value: float) -> Metric:
    return Metric(name, "counter", meaning, (({}, float(value)),))


def _of_runs(name: str, meaning: str, tables: Iterable[Table], key: str) -> Metric:
    samples = tuple(({"run": one["run_id"]}, float(one[key])) for one in tables)
    return Metric(name, "gauge", meaning, samples)


def _by(label: str, counts: Mapping[str, int]) -> tuple[Sample, ...]:
    return tuple(({label: name}, float(count)) for name, count in sorted(counts.items()))


def _epsilon(run: Table, one: Table) -> Sample:
    value = math.inf if one["epsilon"] is None else one["epsilon"]
    claim = {name: text for name, text in one.items() if name != "epsilon"}
    return {"run": run["run_id"], **claim}, value


def _short(method: str) -> str:
    return method.rpartition("/")[2]


def _labels(labels: Mapping[str, object]) -> str:
    r"""Labels as they are written.

    >>> _labels({"run": 'a"b\\'})
    '{run="a\\"b\\\\"}'
    """
    if not labels:
        return ""
    written = (f'{name}="{_escaped(str(value))}"' for name, value in labels.items())
    return "{" + ",".join(written) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return repr(int(value)) if value == int(value) else repr(value)
