"""The same ServerApp and ClientApp on stock Flower: a SuperLink, two SuperNodes, ``flwr run``."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import sordino.client.model
from sordino.core import adapters
from sordino.core.config import resolve_experiment
from sordino.privacy.ledger import read_charges

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

APP = Path(__file__).parents[2] / "examples" / "flower-app"
POCKET = Path(next(iter(sordino.client.model.__path__))) / "pocket"
BIN = Path(sys.executable).parent
NODES = 2
ROUNDS = 2
WAIT_S = 600


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Federation:
    """A SuperLink and its SuperNodes on the loopback, with a Flower home of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.processes: list[subprocess.Popen[bytes]] = []
        home = folder / "flwr"
        home.mkdir()
        (home / "config.toml").write_text(
            '[superlink]\ndefault = "here"\n\n[superlink.here]\n'
            f'address = "127.0.0.1:{self.port}"\ninsecure = true\n'
        )
        self.environment = {
            **os.environ,
            "FLWR_HOME": str(home),
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_TELEMETRY_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
            # Its executors start programs by name.
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        }

    def start(self, node_configs: list[str]) -> None:
        self._spawn("superlink", "flower-superlink", "--insecure", "--port", str(self.port))
        self._wait_for_port()
        for i, config in enumerate(node_configs):
            node = ["--insecure", "--superlink", f"127.0.0.1:{self.port}"]
            node += ["--port", str(free_port()), "--node-config", config]
            self._spawn(f"supernode-{i}", "flower-supernode", *node)

    def flwr(self, *arguments: str) -> dict[str, object]:
        done = subprocess.run(
            [str(BIN / "flwr"), *arguments, "--format", "json"],
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        answer: dict[str, object] = json.loads(done.stdout)
        return answer

    def run(self, run_config: str) -> str:
        """Submit a run and wait for its end; returns the status that Flower has on record."""
        answer = self.flwr("run", str(APP), "here", "--run-config", run_config)
        run_id = str(answer["run-id"])
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            (run,) = self.flwr("ls", "here", "--run-id", run_id)["runs"]  # type: ignore[misc]
            if str(run["status"]).startswith("finished"):
                return str(run["status"])
            time.sleep(2)
        raise AssertionError(f"the run didn't end:\n{self.logs()}")

    def stop(self) -> None:
        for process in reversed(self.processes):
            _end_group(process, signal.SIGTERM)
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
            _end_group(process, signal.SIGKILL)  # what it started and left
            process.wait()

    def logs(self) -> str:
        return "\n".join(p.read_text(errors="replace")[-4000:] for p in self.folder.glob("*.log"))

    def _spawn(self, name: str, program: str, *arguments: str) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [str(BIN / program), *arguments],
                env=self.environment,
                cwd=self.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.processes.append(process)

    def _wait_for_port(self) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.2)
        raise AssertionError(f"no SuperLink:\n{self.logs()}")


def _end_group(process: subprocess.Popen[bytes], how: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, how)


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    federation = Federation(tmp_path)
    federation.start(
        [
            f'partition-id={i} num-partitions={NODES} state-dir="{tmp_path}/state-{i}" '
            f'cache-dir="{tmp_path}/cache"'
            for i in range(NODES)
        ]
    )
    yield federation
    federation.stop()


def test_stock_flower_runs_the_same_apps(federation: Federation, tmp_path: Path) -> None:
    out = tmp_path / "out"
    config = (
        f'sordino-base="{POCKET}" sordino-out="{out}" sordino-nodes={NODES} '
        f"federation.rounds={ROUNDS} train.local_steps=3 privacy.epsilon=4.0"
    )
    status = federation.run(config)
    assert status == "finished:completed", federation.logs()

    rounds = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [(r["round"], r["received"], r["dropped"]) for r in rounds] == [
        (n + 1, NODES, {}) for n in range(ROUNDS)
    ]
    check_adapter(out / "adapter")
    for i in range(NODES):
        (entries,) = read_charges(tmp_path / f"state-{i}" / "ledger.db").values()
        assert [entry.round for entry in entries] == list(range(1, ROUNDS + 1))

    # `flwr run` exits 0 all the same when the run fails: the status on record doesn't.
    wrong_base = config.replace(str(out), f"{out}-2") + f' sordino-base-sha256="{"0" * 64}"'
    assert federation.run(wrong_base) == "finished:failed"
    assert not (tmp_path / "out-2" / "metrics.jsonl").exists()
    for i in range(NODES):  # and what the clients refused cost them nothing
        (entries,) = read_charges(tmp_path / f"state-{i}" / "ledger.db").values()
        assert len(entries) == ROUNDS


def check_adapter(folder: Path) -> None:
    architecture = json.loads((POCKET / "config.json").read_text())
    # What the app's configuration leaves open is what suits the base.
    lora = resolve_experiment({"lora": {"rank": 8, "alpha": 16.0}}).lora
    manifest = adapters.adapter_manifest(architecture, lora)
    tensors = load_file(folder / "adapter_model.safetensors")
    assert set(tensors) == set(manifest.names)
    initial = adapters.initial_adapter(manifest, 0)
    for name, tensor in tensors.items():
        assert np.isfinite(tensor).all()
        assert np.array_equal(tensor, initial[name]) == adapters.is_lora_a(name)
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == 8
