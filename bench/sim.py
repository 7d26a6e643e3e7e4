"""What a grid of simulated clients costs, beside stock Flower's Ray simulation of the same app.

    python bench/sim.py [--clients 10000] [--cohort 100] [--tasks 1000] [--pocket] [--json PATH]

Trivial clients show the overhead: they send back the array that they got. Times are given twice, by
the clock and as processor time of all processes together: on a machine that does other work only
the second means much. Ray is measured where it is installed (`pip install "sordino[bench]"`).
`--pocket` trains real clients, and asks which part of a round's time is training steps and what a
second worker adds. Two hardware threads of one core are not two cores: the line says so.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from sordino.core import app as flower
from sordino.core.wire import Envelope
from sordino.sim.grid import LocalGrid

APP = "sim:app"  # this file, as a worker imports it
SIZE = 1536  # values of an update, as `central` sends

app = ClientApp()


@app.train()
def _echo(message: Message, context: Context) -> Message:
    return Message(message.content, reply_to=message)


class Clock:
    """Seconds by the clock, and processor time of this process and those it has waited for."""

    def __init__(self) -> None:
        self._wall, self._processor = time.perf_counter(), _processor([])
        self._before: dict[int, float] = {}

    def read(self, workers: list[int]) -> dict[str, float]:
        """Since it was made; `workers` are processes that still live."""
        return {
            "wall_s": time.perf_counter() - self._wall,
            "processor_s": _processor(workers) - self._processor - sum(self._before.values()),
        }

    def excluding(self, workers: list[int]) -> Clock:
        """Leave out what workers did before."""
        self._before = {pid: _processor_of(pid) for pid in workers}
        return self


def _processor(workers: list[int]) -> float:
    return sum(os.times()[:4]) + sum(map(_processor_of, workers))


def _processor_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _resident_mb(pids: list[int]) -> float:
    total = 0.0
    for pid in pids:
        rows = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total += sum(int(row.split()[1]) for row in rows if row.startswith("Pss:")) / 1e3
    return total


def local(clients: int, cohort: int, tasks: int, workers: int) -> dict[str, Any]:
    """Start a grid, and send rounds of trivial tasks to cohorts of its clients."""
    content = flower.to_records(Envelope({}, {"update": np.zeros(SIZE, np.float32)}))
    clock = Clock()
    with LocalGrid(_Nodes(clients), app=APP, workers=workers) as grid:
        pids = [os.getpid(), *grid.worker_process_ids]
        started = clock.read(grid.worker_process_ids)
        _round(
            grid, content, range(2, 2 + min(cohort, clients))
        )  # the workers import what they need
        clock = Clock().excluding(grid.worker_process_ids)
        done = 0
        while done < tasks:
            first = done % max(clients - cohort, 1)
            done += _round(grid, content, range(2 + first, 2 + first + min(cohort, clients)))
        spent = clock.read(grid.worker_process_ids)
        memory = _resident_mb(pids)
    return _line(f"LocalGrid, {workers} workers, {clients} clients", started, spent, done, memory)


class _Nodes:
    """Configurations made when they are asked for."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Mapping[str, int]:
        return {"partition-id": index}


def _round(grid: Grid, content: RecordDict, nodes: range) -> int:
    messages = [grid.create_message(content, "train", node, "1") for node in nodes]
    replies = list(grid.send_and_receive(messages))
    assert len(replies) == len(messages)
    assert not any(reply.has_error() for reply in replies)
    return len(replies)


def ray(clients: int, cohort: int, tasks: int, workers: int) -> dict[str, Any]:
    """The same rounds through stock Flower's simulation; in a process of its own."""
    from flwr.simulation import run_simulation

    content = flower.to_records(Envelope({}, {"update": np.zeros(SIZE, np.float32)}))
    found: dict[str, Any] = {}
    server = ServerApp()
    clock = Clock()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        nodes = sorted(grid.get_node_ids())
        while len(nodes) < clients:
            time.sleep(0.05)
            nodes = sorted(grid.get_node_ids())
        _round(grid, content, nodes[:cohort])
        family = _family()
        started = clock.read(family)
        again = Clock().excluding(family)
        done = 0
        while done < tasks:
            done += _round(grid, content, nodes[:cohort])
        spent = again.read(family)
        found.update(
            _line(
                f"Ray, {workers} workers, {clients} clients",
                started,
                spent,
                done,
                _resident_mb([os.getpid(), *family]),
            )
        )

    run_simulation(
        server_app=server,
        client_app=app,
        num_supernodes=clients,
        backend_config={
            "init_args": {"num_cpus": workers, "include_dashboard": False},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        },
    )
    return found


def _family() -> list[int]:
    """This process' descendants: Ray's servers and actors."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(") ")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(path.parent.name))
    found, queue = [], [os.getpid()]
    while queue:
        for child in children.get(queue.pop(), []):
            found.append(child)
            queue.append(child)
    return found


def _line(
    name: str, started: dict[str, float], spent: dict[str, float], done: int, memory: float
) -> dict[str, Any]:
    return {
        "name": name,
        "start_wall_s": started["wall_s"],
        "start_processor_s": started["processor_s"],
        "task_wall_ms": 1e3 * spent["wall_s"] / done,
        "task_processor_ms": 1e3 * spent["processor_s"] / done,
        "pss_mb": memory,
    }


def apart(call: str, arguments: list[int]) -> dict[str, Any]:
    """Measure in a fresh process, so that nothing of one stands in another's figures."""
    code = f"import json, sim; print('=' + json.dumps(sim.{call}(*{arguments})))"
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": paths, "FLWR_TELEMETRY_ENABLED": "0",
             "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("={")]
    if done.returncode or not lines:
        raise SystemExit(f"{call} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(lines[0][1:])
    return found


def training() -> dict[str, float]:
    """A federation of `pocket` with one worker and with two: where the time goes, what it gains."""
    from sordino.sim import experiment, simulate
    from sordino.sim.baselines import Baselines
    from sordino.sim.variants import observations

    rates = {}
    share = 0.0
    for workers in (1, 2):
        config = experiment("demo", {"performance.workers": workers, "federation.rounds": 2})
        with tempfile.TemporaryDirectory() as folder:
            made = simulate(config, Path(folder) / "run", baselines=Baselines())
            states = sorted((made.folder / "state" / "private").glob("client-*"))
            seen = [entry for state in states for entry in observations(state)]
            lines = [
                json.loads(x) for x in (made.folder / "metrics.jsonl").read_text().splitlines()
            ]
            rounds = [line for line in lines if line["event"] == "round"]
        # The first round opens the model and reads the data.
        rates[workers] = 1 / rounds[-1]["wall_s"]
        if workers == 1:
            steps = sum(float(str(entry["seconds"])) for entry in seen[1::2])
            share = steps / rounds[-1]["wall_s"]
    return {"training_share": share, "second_worker": rates[2] / rates[1]}


def main() -> None:
    """Print a line a measurement."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--cohort", type=int, default=100)
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--pocket", action="store_true")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    plans: list[tuple[str, int]] = [("local", 100), ("local", given.clients)]
    if importlib.util.find_spec("ray"):
        plans.append(("ray", given.cohort))
    else:
        print('Ray is not installed: pip install "sordino[bench]"')
    found = []
    for call, clients in plans:
        arguments = [clients, min(given.cohort, clients), given.tasks, given.workers]
        found.append(apart(call, arguments))
        one = found[-1]
        print(
            f"{one['name']}: start {one['start_wall_s']:.2f} s (processor "
            f"{one['start_processor_s']:.2f} s), task {one['task_wall_ms']:.3f} ms (processor "
            f"{one['task_processor_ms']:.3f} ms), "
            f"memory {one['pss_mb']:.0f} MB",
            flush=True,
        )
    print(
        f"memory, {given.clients} clients over 100: {found[1]['pss_mb'] / found[0]['pss_mb']:.3f}"
    )
    if given.pocket:
        shares = training()
        print(
            f"pocket: {shares['training_share']:.0%} of a round in training steps; a second worker "
            f"gives {shares['second_worker']:.2f} x the throughput on {_cores()}"
        )
        found.append(shares)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


def _cores() -> str:
    siblings = {
        path.read_text().strip()
        for path in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/topology/thread_siblings_list")
    }
    return f"{os.cpu_count()} hardware threads of {len(siblings) or '?'} cores"


if __name__ == "__main__":
    main()
