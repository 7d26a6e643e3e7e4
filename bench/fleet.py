"""What a coordinator bears: devices that only speak the protocol, against the real service.

    python bench/fleet.py [--only PART ...] [--devices N ...] [--folder FOLDER] [--json FILE]

Parts: `spread` (arrivals over a minute), `burst` (all at once), `flat` (memory over many rounds),
`overhead` (rounds of two devices by the size of an update), `flower` (the same rounds on stock
Flower, which keeps nothing durable). Coordinator and devices share the machine and its processors:
the figures are of both. The devices train nothing, but all else is real: TLS with a certificate
each, signed calls, SQLite and files that are synced, every update checked and summed.
"""

# ruff: noqa: E402  TLS is settled before anything imports gRPC
from sordino.core.trust import require_tls13

require_tls13()

import argparse
import json
import math
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from fleet_coordinator import RunOrder, RunResult, coordinate
from fleet_devices import Answer, run_devices
from fleet_flower import flower_rounds

PARTS = ("spread", "burst", "flat", "overhead", "flower")
SPREAD_S = 60.0
MEGABYTE = 1_000_000
SIZES = (0, 5 * MEGABYTE, 50 * MEGABYTE)
DEVICE_PROCESSES = 2
_SPAWN = multiprocessing.get_context("spawn")  # grpc doesn't survive a fork


@dataclass
class Fleet:
    """A coordinator's process, as its parent sees it."""

    address: str
    folders: Sequence[Path]
    pipe: Connection
    pid: int
    peak_mb: float = 0.0

    def rss_mb(self) -> float:
        """The coordinator's resident memory now."""
        text = Path(f"/proc/{self.pid}/status").read_text("ascii")
        return int(text.split("VmRSS:")[1].split()[0]) / 1024


@contextmanager
def fleet(folder: Path, devices: int) -> Iterator[Fleet]:
    """A coordinator with that many members, in a folder of its own."""
    with tempfile.TemporaryDirectory(dir=folder) as made:
        ours, theirs = _SPAWN.Pipe()
        process = _SPAWN.Process(target=coordinate, args=(Path(made), devices, theirs))
        process.start()
        theirs.close()
        try:
            address, folders = ours.recv()
            yield Fleet(address, folders, ours, process.pid or 0)
            ours.send(None)
            process.join(60)
        finally:
            process.kill()
            process.join()


def play(
    here: Fleet, order: RunOrder, waits: Sequence[float]
) -> tuple[RunResult, list[Answer], list[float]]:
    """A run with all of its devices.

    Returns:
        The coordinator's account, every answer, and its memory in MB after each half second.
    """
    numbered = list(enumerate(here.folders[: order.devices]))
    shares = [range(k, order.devices, DEVICE_PROCESSES) for k in range(DEVICE_PROCESSES)]
    pipes, processes = [], []
    for share in shares:
        ours, theirs = _SPAWN.Pipe()
        arguments = (
            [numbered[i] for i in share],
            here.address,
            order.rounds,
            [waits[i] for i in share],
            theirs,
        )
        processes.append(_SPAWN.Process(target=run_devices, args=arguments))
        processes[-1].start()
        theirs.close()
        pipes.append(ours)
    try:
        for pipe in pipes:
            pipe.recv()  # connected
        over, memory = threading.Event(), list[float]()
        watch = threading.Thread(target=_watch, args=(here, over, memory))
        watch.start()
        here.pipe.send(order)
        answers = [answer for pipe in pipes for answer in pipe.recv()]
        result = here.pipe.recv()
        over.set()
        watch.join()
    finally:
        for process in processes:
            process.join(10)
            process.kill()
    return result, answers, memory


def _watch(here: Fleet, over: threading.Event, memory: list[float]) -> None:
    memory.append(here.rss_mb())
    while not over.wait(0.5):
        memory.append(here.rss_mb())


def check(result: RunResult, order: RunOrder) -> None:
    """Nothing lost, nothing counted twice."""
    if list(result.accepted) != [order.devices] * order.rounds or not result.right:
        raise SystemExit(f"{order}: accepted {result.accepted}, sum right: {result.right}")


def spread(folder: Path, devices: int) -> dict[str, Any]:
    """Updates of 1 MB that arrive over a minute."""
    order = RunOrder(run_id="spread", update_bytes=MEGABYTE, rounds=1, devices=devices)
    with fleet(folder, devices) as here:
        result, answers, memory = play(
            here, order, [SPREAD_S * i / devices for i in range(devices)]
        )
    check(result, order)
    return {"devices": devices, **acknowledgements(answers), **cost(result, memory)}


def burst(folder: Path, devices: int) -> dict[str, Any]:
    """Updates of 1 MB that all come at once."""
    order = RunOrder(run_id="burst", update_bytes=MEGABYTE, rounds=1, devices=devices)
    with fleet(folder, devices) as here:
        result, answers, memory = play(here, order, [0.0] * devices)
    check(result, order)
    last = max(answer.acked_at for answer in answers) - result.started_at
    return {
        "devices": devices,
        "all_acknowledged_s": round(last, 2),
        **acknowledgements(answers),
        **cost(result, memory),
    }


def flat(folder: Path, devices: int = 8, rounds: int = 100) -> dict[str, Any]:
    """The coordinator's memory over many rounds of 1 MB updates."""
    order = RunOrder(run_id="flat", update_bytes=MEGABYTE, rounds=rounds, devices=devices)
    with fleet(folder, devices) as here:
        result, _, memory = play(here, order, [0.0] * devices)
    check(result, order)
    tenth = max(1, len(memory) // 10)
    return {
        "devices": devices,
        "rounds": rounds,
        "mb_after_a_tenth": round(statistics.median(memory[tenth : 2 * tenth + 1]), 1),
        "mb_at_the_end": round(statistics.median(memory[-tenth:]), 1),
        "peak_mb": round(max(memory), 1),
    }


def overhead(folder: Path, size: int, rounds: int = 6) -> dict[str, Any]:
    """Rounds of two devices that answer at once, from one publication to the next."""
    order = RunOrder(run_id="overhead", update_bytes=size, rounds=rounds, devices=2)
    with fleet(folder, 2) as here:
        result, _, memory = play(here, order, [0.0, 0.0])
    check(result, order)
    took = [later - earlier for earlier, later in pairwise(result.published_at)]
    return {"update_bytes": size, **seconds(took), **cost(result, memory)}


def acknowledgements(answers: Sequence[Answer]) -> dict[str, Any]:
    """From the last chunk on."""
    took = sorted(answer.chunk_to_ack_s for answer in answers)
    return {
        "answers": len(took),
        "ack_p50_s": round(statistics.median(took), 3),
        "ack_p99_s": round(took[math.ceil(0.99 * len(took)) - 1], 3),
        "ack_max_s": round(took[-1], 3),
        "retries": sum(answer.retries for answer in answers),
    }


def cost(result: RunResult, memory: Sequence[float]) -> dict[str, Any]:
    """What the coordinator took, which a busy machine leaves comparable: processor time, memory."""
    each = 1000 * result.cpu_s / sum(result.accepted)
    return {"cpu_ms_an_update": round(each, 1), "peak_mb": round(max(memory))}


def seconds(took: Sequence[float]) -> dict[str, Any]:
    """The median and the range."""
    return {
        "round_s": round(statistics.median(took), 3),
        "from_s": round(min(took), 3),
        "to_s": round(max(took), 3),
        "of": len(took),
    }


def machine() -> dict[str, Any]:
    """What the figures were taken on, and how busy it was."""
    text = Path("/proc/cpuinfo").read_text("utf-8")
    models = [line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line]
    return {
        "processor": models[0] if models else platform.machine(),
        "processors": os.cpu_count(),
        "load": [round(load, 2) for load in os.getloadavg()],
        "python": platform.python_version(),
        "at": time.strftime("%Y-%m-%d %H:%M"),
    }


def measure(parts: Sequence[str], devices: Sequence[int], folder: Path) -> Iterator[dict[str, Any]]:
    """Every part's figures, as they come."""
    for count in devices:
        if "spread" in parts:
            yield {"part": "spread", **spread(folder, count)}
        if "burst" in parts:
            yield {"part": "burst", **burst(folder, count)}
    if "flat" in parts:
        yield {"part": "flat", **flat(folder)}
    if "overhead" in parts:
        for size in SIZES:
            yield {"part": "overhead", **overhead(folder, size)}
    if "flower" in parts:
        with tempfile.TemporaryDirectory(dir=folder) as made:
            for size, took in flower_rounds(Path(made), SIZES).items():
                yield {"part": "flower", "update_bytes": size, **seconds(took)}


def main() -> None:
    """Print a line a part, and everything as JSON at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--devices", nargs="+", type=int, default=[100, 500])
    parser.add_argument("--folder", type=Path, help="where, which says which disk; a temporary one")
    parser.add_argument("--json", type=Path, help="a file for all figures")
    options = parser.parse_args()
    found = {"machine": machine(), "parts": list[dict[str, Any]]()}
    print(json.dumps(found["machine"]))
    for figures in measure(options.only, options.devices, options.folder):
        found["parts"].append(figures)
        print("  ".join(f"{name} {value}" for name, value in figures.items()))
        sys.stdout.flush()
    found["machine_after"] = machine()
    text = json.dumps(found, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
