"""`sordino serve` as a real process, from `sordino ca init` on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sordino.protos.v1 import operator_pb2
from sordino.server.enroll.operators import FIRST
from sordino.server.operator.client import OperatorClient, access_of

ANY_PORTS = """
hosts = ["127.0.0.1"]

[addresses]
enroll = "127.0.0.1:0"
fleet = "127.0.0.1:0"
operator = "127.0.0.1:0"
status = "127.0.0.1:0"

[service]
calls_per_minute = 100_000
grace_s = 0.5
"""


def sordino(*arguments: object, **more: Any) -> subprocess.Popen[str]:
    """The command, with this interpreter's path."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "sordino.cli.main", *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=env, stdout=pipe, stderr=pipe, text=True, **more)


def run(*arguments: object) -> str:
    """What the command prints; it must end well."""
    out, err = (process := sordino(*arguments)).communicate(timeout=300)
    assert process.returncode == 0, err
    return out


@dataclass
class Served:
    """A fleet's folder, and the process that serves it when one does."""

    folder: Path
    process: subprocess.Popen[str] | None = None
    where: dict[str, str] = field(default_factory=dict)

    @classmethod
    def make(cls, folder: Path, toml: str = ANY_PORTS) -> Served:
        run("ca", "init", folder, "--host", "127.0.0.1")
        (folder / "fleet.toml").write_text(toml)
        return cls(folder)

    @property
    def enroll_address(self) -> str:
        return self.where["enroll"]

    @property
    def fleet_address(self) -> str:
        return self.where["fleet"]

    def begin(self) -> Served:
        """Serve, and wait until it says so."""
        ready = self.folder / "ready.json"
        ready.unlink(missing_ok=True)
        config = self.folder / "fleet.toml"
        self.process = sordino("serve", "--config", config, "--ready-file", ready)
        end = time.monotonic() + 300
        while not ready.exists():
            assert self.process.poll() is None, self.process.communicate()[1]
            assert time.monotonic() < end, "it doesn't serve"
            time.sleep(0.02)
        self.where = json.loads(ready.read_text())
        return self

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str, str]:
        """Send a signal, and wait: the exit code, and what was said."""
        assert self.process is not None
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=300)
        return self.process.returncode, out, err

    def token(self) -> str:
        return run("ca", "token", self.folder).strip()

    @contextmanager
    def operator(self) -> Iterator[OperatorClient]:
        with OperatorClient(access_of(self.folder, self.folder / FIRST)) as client:
            yield client

    def start_run(self, run_id: str, toml: str, cohort: int) -> None:
        request = operator_pb2.StartRunRequest(
            request_id=f"start-{run_id}",
            run_id=run_id,
            settings_toml=toml.encode(),
            cohort=cohort,
        )
        with self.operator() as client:
            client.call("StartRun", request, operator_pb2.Run)

    def state(self, run_id: str) -> str:
        with self.operator() as client:
            return operator_pb2.RunState.Name(client.run(run_id).state).removeprefix("RUN_STATE_")


@contextmanager
def served(folder: Path, toml: str = ANY_PORTS) -> Iterator[Served]:
    """A fleet from nothing, served until the block ends."""
    made = Served.make(folder, toml)
    try:
        yield made.begin()
    finally:
        if made.process is not None and made.process.poll() is None:
            made.process.kill()
            made.process.communicate()
