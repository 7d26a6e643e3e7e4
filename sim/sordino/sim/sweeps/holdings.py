"""Who has what, drawn: a bar of records a client, in parts by label where records have labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sordino.server.report import formats, svg
from sordino.server.report.charts import Chart
from sordino.server.report.svg import Axis
from sordino.sim.partitions import Holdings
from sordino.sim.sweeps.outcome import Finished, SweepResult

_MOST_CLIENTS = 24  # in one drawing: of more, evenly chosen from the richest to the poorest
_MOST_LABELS = 4  # with a colour of their own
_OTHERS = "others"
_LEFT, _RIGHT, _ROW = 120, 396, 15
_LONGEST_NAME = 16


def holdings_charts(result: SweepResult) -> list[Chart]:
    """A drawing for each different dealing of the data."""
    first: dict[object, Finished] = {}
    for run in result.runs:
        config = run.cell.config
        first.setdefault((config.data, config.partition), run)
    return [_draw(number, run) for number, run in enumerate(first.values(), 1)]


def _draw(number: int, run: Finished) -> Chart:
    how = run.cell.config.partition
    title = "Records by client" if how.kind == "user" else f"Records by client, dealt by {how.kind}"
    if how.kind in ("dirichlet", "quantity"):
        title += f", α = {how.alpha:g}"
    held = Holdings.read(run.folder) or _users(run)
    parts, names = _largest(held)
    order = np.argsort(-parts.sum(1), kind="stable")
    chosen = order[np.linspace(0, len(order) - 1, min(len(order), _MOST_CLIENTS)).astype(int)]
    labelled = len(names) > 1
    top = 8 + 18 * ((len(names) + 1) // 2) * labelled
    body = _legend(names) if labelled else []
    across = Axis(0.0, float(max(parts.sum(1).max(), 1)), _LEFT, _RIGHT)
    for row, client in enumerate(chosen):
        body += _bar(across, top + _ROW * row, held.clients[client], parts[client])
    shown = f"{len(chosen)} of {len(order)} clients" if len(chosen) < len(order) else "all clients"
    least, most = int(parts.sum(1).min()), int(parts.sum(1).max())
    key = f"holdings-{number}"
    height = top + _ROW * len(chosen) + 6
    return Chart(
        key=key,
        title=title,
        svg=svg.figure(key, title, f"From {least} to {most}; {shown}.", (440, height), *body),
        columns=("Client", *(names if labelled else ()), "Records"),
        rows=tuple(
            (
                held.clients[c],
                *(map(formats.count, map(int, parts[c])) if labelled else ()),
                formats.count(int(parts[c].sum())),
            )
            for c in order
        ),
        simulation_only=True,
    )


def _users(run: Finished) -> Holdings:
    """The data's own users: their training records, as the run's report counts them."""
    clients = run.report.clients
    return Holdings(
        tuple(one.client for one in clients), ("",), tuple((one.records or 0,) for one in clients)
    )


def _largest(held: Holdings) -> tuple[np.ndarray, tuple[str, ...]]:
    """Counts of the labels with most records, and all others' in one."""
    counts = np.array(held.counts).reshape(len(held.clients), -1)
    if counts.shape[1] <= _MOST_LABELS + 1:
        return counts, held.labels
    order = np.argsort(-counts.sum(0), kind="stable")
    largest, rest = order[:_MOST_LABELS], order[_MOST_LABELS:]
    parts = np.column_stack([counts[:, largest], counts[:, rest].sum(1)])
    return parts, (*(held.labels[i] for i in largest), _OTHERS)


def _bar(across: Axis, y: float, client: str, parts: Sequence[int]) -> list[str]:
    name = client if len(client) <= _LONGEST_NAME else f"…{client[1 - _LONGEST_NAME :]}"
    body = [svg.text(name, _LEFT - 8, y + 9, "tick", "end")]
    done = 0
    for index, part in enumerate(parts, 1):
        start, end = across.place(done), across.place(done + int(part))
        body.append(svg.rect(start, y, end - start, 10, f"part c{index}"))
        done += int(part)
    return [*body, svg.text(formats.count(done), across.place(done) + 5, y + 9, "tick")]


def _legend(names: Sequence[str]) -> list[str]:
    body = []
    for index, name in enumerate(names):
        x, y = 220 * (index % 2), 2 + 18 * (index // 2)
        body.append(svg.rect(x, y, 11, 11, f"part c{index + 1}"))
        short = name if len(name) <= _LONGEST_NAME + 8 else f"{name[: _LONGEST_NAME + 7]}…"
        body.append(svg.text(short, x + 17, y + 10, "value small"))
    return body
