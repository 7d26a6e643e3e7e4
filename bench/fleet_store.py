"""What a round costs the coordinator's store alone: no network, no model, everything durable.

    python bench/fleet_store.py [FOLDER]

Rounds of two devices with updates of several sizes, and a burst of a hundred devices. Processor
time is what a busy machine leaves comparable; the peak is the process', to be flat.
"""

import argparse
import resource
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sordino.core.contract import Artefact, SignedHead
from sordino.server import fleet_rounds as fr
from sordino.server.store import Accepted, Device, Round, Task

CHUNK = 1 << 18


class Reading:
    """Work that reads every update, and nothing more."""

    def check(self, asked: Round, data: bytes) -> SignedHead | None:
        """Anything goes."""
        return None


def answer(fleet: fr.Fleet, work: fr.Work, task: Task, data: bytes) -> None:
    """A device's part of a round, in chunks."""
    artefact = Artefact.of(data)
    upload = fr.offer_upload(fleet, task.device_id, task.task_id, artefact)
    stream = fr.Stream(fleet, task.device_id, upload.upload_id, artefact, 0)
    for offset in range(0, len(data), CHUNK):
        stream.write(offset, data[offset : offset + CHUNK])
    stream.keep()
    fr.finish_upload(fleet, work, upload.upload_id)


@contextmanager
def running(folder: Path, devices: int, size: int) -> Iterator[tuple[fr.Fleet, Callable[[], None]]]:
    """A fleet in a folder, and a call that runs one round of it."""
    with fr.open_fleet(folder) as fleet:
        for number in range(devices):
            with fleet.store.write("bench") as tx:
                tx.add(Device(device_id=f"d{number:03}", name="", enrolled_ms=1))
        (folder / "base").write_bytes(b"GGUF")
        new = fr.NewRun(
            run_id="bench",
            settings="",
            trust="none",
            plan=b"{}",
            manifest=b"[]",
            base=fr.keep_base(fleet, folder / "base"),
            rounds=1000,
            cohort=devices,
            min_updates=devices,
            timeout_ms=3_600_000,
            max_answer_bytes=1 << 30,
        )
        fr.start_run(fleet, "start", new)
        work = Reading()

        def one_round() -> None:
            planned = fr.plan_round(fleet, "bench")
            if planned is None:
                raise SystemExit("the run is over")
            names = [f"d{number:03}" for number in range(devices)]
            opening = fr.Opening(
                plan=b"{}", settings="", adapter=None, cohort=names, time_ms=3_600_000
            )
            fr.open_round(fleet, "bench", planned.round, opening)
            for name in names:
                task = fr.task_for(fleet, name)
                if task is None:
                    raise SystemExit("a device has no task")
                answer(fleet, work, task, secrets.token_bytes(size))
            fr.close_round(fleet, work, "bench", planned.round)
            with fleet.store.read() as rows:
                accepted = rows.all(Accepted, run_id="bench", round=planned.round)
            largest = max((fleet.artefacts.read(row.sha256) for row in accepted), key=len)
            fr.aggregate_round(fleet, "bench", planned.round, largest)
            fr.publish_round(fleet, "bench", planned.round)
            fr.collect_garbage(fleet)

        yield fleet, one_round


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, help="where; a temporary one")
    folder = parser.parse_args().folder
    print("| devices | an update | processor s a round | wall s a round | peak MB |")
    print("|---|---|---|---|---|")
    for devices, size, rounds in (
        (2, 16, 10),
        (2, 5_000_000, 5),
        (2, 50_000_000, 3),
        (100, 1_000_000, 2),
    ):
        with (
            tempfile.TemporaryDirectory(dir=folder) as made,
            running(Path(made), devices, size) as (
                _,
                one_round,
            ),
        ):
            one_round()
            wall, processor = time.perf_counter(), time.process_time()
            for _ in range(rounds):
                one_round()
            wall, processor = time.perf_counter() - wall, time.process_time() - processor
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        cells = (devices, f"{size:,} B", f"{processor / rounds:.3f}", f"{wall / rounds:.3f}")
        print("|", " | ".join(map(str, (*cells, f"{peak:.0f}"))), "|")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
