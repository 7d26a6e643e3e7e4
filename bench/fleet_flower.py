"""Rounds of stock Flower on loopback: a SuperLink, SuperNodes, and an app that only carries arrays.

`bench/fleet.py` uses it, for figures of the same machine in the same run.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

APP = Path(__file__).parent / "stock_flower"
BIN = Path(sys.executable).parent
WAIT_S = 1800.0


def flower_rounds(
    folder: Path, sizes: Sequence[int], *, nodes: int = 2, rounds: int = 5
) -> dict[int, list[float]]:
    """Seconds of each round, by the size of an adapter and of an update.

    Args:
        folder: For Flower's home and its logs.
        sizes: Bytes.
        nodes: SuperNodes.
        rounds: Of each size.
    """
    out, port = folder / "rounds.json", _free_port()
    with ExitStack() as running:
        environment = _environment(folder, port)
        link = ["flower-superlink", "--insecure", "--port", str(port)]
        running.enter_context(_process(folder, environment, "superlink", link))
        _wait_for_port(port)
        for number in range(nodes):
            node = ["flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{port}"]
            node += ["--port", str(_free_port())]
            running.enter_context(_process(folder, environment, f"supernode-{number}", node))
        config = f'nodes={nodes} sizes="{",".join(map(str, sizes))}" rounds={rounds} out="{out}"'
        answer = _flwr(folder, environment, "run", str(APP), "here", "--run-config", config)
        _wait_for_end(folder, environment, str(answer["run-id"]))
    return {int(size): took for size, took in json.loads(out.read_text("utf-8")).items()}


def _environment(folder: Path, port: int) -> dict[str, str]:
    home = folder / "flwr"
    home.mkdir()
    (home / "config.toml").write_text(
        '[superlink]\ndefault = "here"\n\n[superlink.here]\n'
        f'address = "127.0.0.1:{port}"\ninsecure = true\n',
        encoding="utf-8",
    )
    return {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",  # its executors start programs by name
    }


@contextmanager
def _process(
    folder: Path, environment: dict[str, str], name: str, command: list[str]
) -> Iterator[None]:
    """A program with a log; its whole group ends with the block."""
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            [str(BIN / command[0]), *command[1:]],
            env=environment,
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield
    finally:
        for how in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, how)
                process.wait(15)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue


def _flwr(folder: Path, environment: dict[str, str], *arguments: str) -> dict[str, object]:
    done = subprocess.run(
        [str(BIN / "flwr"), *arguments, "--format", "json"],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


def _wait_for_end(folder: Path, environment: dict[str, str], run_id: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        listing = _flwr(folder, environment, "ls", "here", "--run-id", run_id)
        (run,) = listing["runs"]  # type: ignore[misc]
        if str(run["status"]).startswith("finished"):
            if run["status"] != "finished:completed":
                raise SystemExit(f"stock Flower: {run['status']}; its logs are in {folder}")
            return
        time.sleep(5)
    raise SystemExit(f"stock Flower didn't end within {WAIT_S:.0f} s; its logs are in {folder}")


def _wait_for_port(port: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise SystemExit("stock Flower's SuperLink didn't start")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
