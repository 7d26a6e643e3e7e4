"""`sordino join` as a person types it: a real process, the shipped model, the built-in policy."""

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest
from support.devices import coordinator, until
from support.fleets import RUN, get, new_run, rows_of

from sordino.client.agent.membership import join_fleet
from sordino.client.agent.timing import Surroundings
from sordino.client.device import kept_calibration
from sordino.client.model.gguf_file import file_sha256
from sordino.client.model.registry import POCKET_FOLDER
from sordino.core.adapters import adapter_manifest
from sordino.core.config import LoraConfig, TrainConfig
from sordino.core.errors import TrustError
from sordino.core.settings import to_toml
from sordino.privacy.ledger import read_ledger
from sordino.privacy.plan import Plan, verify_ledger
from sordino.server import fleet_rounds as fr
from sordino.server.store import Device, Run

ROUNDS = 2
LORA = LoraConfig(rank=2)
TRAIN = TrainConfig(local_steps=2, learning_rate=0.1)
CONFIG = json.loads((POCKET_FOLDER / "config.json").read_text())
MANIFEST = adapter_manifest(CONFIG, LORA)
PLAN = Plan(
    run_id=RUN,
    rounds=ROUNDS,
    steps_per_round=2,
    sampling_rate=0.1,
    noise_multiplier=1.0,
    clip_norm=1.0,
    divisor=4.0,
    delta=1e-5,
)


@contextmanager
def fleet(folder):
    with coordinator(folder, work=fr.AdapterWork) as at:
        yield at


def start(at):
    base = fr.keep_base(at.fleet, POCKET_FOLDER / "pocket.gguf")
    run = new_run(
        base,
        settings=f"[lora]\n{to_toml(LORA)}\n[train]\n{to_toml(TRAIN)}",
        trust="local",
        plan=PLAN.canonical(),
        manifest=MANIFEST.canonical(),
        rounds=ROUNDS,
        cohort=1,
        timeout_ms=200_000,
    )
    fr.start_run(at.fleet, "start", run)
    at.advance()


def sordino(*arguments, **more):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "sordino.cli.main", *map(str, arguments)]
    return subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more
    )


def test_a_device_joins_trains_stops_and_leaves(tmp_path):
    home = tmp_path / "device"
    home.mkdir()
    (home / "device.toml").write_text(
        '[node]\nuser = "hamlet/HAMLET"\nmax_tokens = 24\nshare = 0.2\nmemory_mb = 200\n'
        "[agent]\nsend_calibration = true\n"
    )
    with fleet(tmp_path / "fleet") as at:
        service = at.service
        join = sordino(
            "join",
            service.enroll_address,
            "--token",
            at.token(),
            "--folder",
            home,
            "--fleet-address",
            service.fleet_address,
        )
        try:
            until(lambda: at.service.online() or join.poll() is not None)
            assert join.poll() is None, join.stderr.read()
            start(at)

            def over():
                at.advance()
                assert join.poll() is None, join.stderr.read()
                return get(at.fleet, Run, RUN).state == "done"

            until(over, 200)
            join.send_signal(signal.SIGTERM)
            out, err = join.communicate(timeout=60)
        finally:
            join.kill()
        assert join.returncode == 0, err
        assert out.startswith("device: d-")
        assert "HAMLET" not in out + err
        figures = kept_calibration(home)
        assert figures.base_sha256 == file_sha256(POCKET_FOLDER / "pocket.gguf")
        (row,) = rows_of(at.fleet, Device)
        sent = json.loads(row.capabilities)["calibration"]
        assert sent["tokens_per_second"] == pytest.approx(figures.tokens_per_second)
        (book,) = read_ledger(home / "state/ledger.db").values()
        assert [one.state for one in book.charges.values()] == ["released"] * ROUNDS
        assert verify_ledger(home / "state/ledger.db").ok
        gone = sordino("leave", "--folder", home)
        out, err = gone.communicate(timeout=60)
        assert (gone.returncode, "left; its ledger is still here" in out) == (0, True), err
        with pytest.raises(TrustError, match="isn't enrolled"):
            join_fleet(home, "", "", Surroundings())
        assert (home / "state/ledger.db").exists()
