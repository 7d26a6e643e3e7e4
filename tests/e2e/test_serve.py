"""`sordino serve` as a person types it: a real process, killed in a round, and devices over TLS."""

import json
import resource
import signal

import numpy as np
import pytest
from support.devices import Device, until
from support.serving import served, sordino

from sordino.client.model.registry import POCKET_FOLDER
from sordino.core.adapters import adapter_manifest, initial_adapter, trained_manifest
from sordino.core.config import LoraConfig
from sordino.core.contract import Artefact, decode_adapter, encode_update
from sordino.core.errors import StoreError
from sordino.core.records import Update
from sordino.server import fleet_rounds as fr
from sordino.server.fleet_config import load_fleet
from sordino.server.serving import serving
from sordino.server.store import Round, Run

pytestmark = pytest.mark.timeout(900)  # a busy machine starts processes slowly

UNIT = 2.0**-10
LORA = LoraConfig(rank=1, targets=("v_proj",))
RUN = """
[lora]
rank = 1
targets = ["v_proj"]
[privacy]
trust = "none"
[federation]
rounds = 2
min_updates = 2
"""


def update(task, value):
    """Every parameter of a round's update is the same."""
    architecture = json.loads((POCKET_FOLDER / "config.json").read_text())
    manifest = trained_manifest(adapter_manifest(architecture, LORA), "ffa", task.round)
    tensors = {spec.name: np.full(spec.shape, value, np.float32) for spec in manifest.tensors}
    made = Update(
        run_id=task.run_id,
        round=task.round,
        plan_sha256=task.plan_sha256,
        tensors=tensors,
        receipt=None,
    )
    return encode_update(made, None)


def greet(device):
    device.hello()
    device.heartbeat()  # it is at hand for a while, without a stream


def test_a_coordinator_killed_in_a_round_goes_on_with_it(tmp_path):
    with served(tmp_path / "fleet") as here:
        devices = [Device.enrol(tmp_path / name, here, here.token()) for name in ("a", "b")]
        for device in devices:
            greet(device)
        here.start_run("r", RUN, 2)
        tasks = [device.next_task() for device in devices]
        assert devices[0].answer(tasks[0], update(tasks[0], UNIT)) == "ACCEPTED"
        devices[1].acknowledge(tasks[1])
        with pytest.raises(StoreError, match="another coordinator works in"):
            serving(load_fleet(here.folder / "fleet.toml")).__enter__()
        assert here.end(signal.SIGKILL)[0] == -signal.SIGKILL

        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        here.begin()
        for device in devices:
            device.reach(here)
            greet(device)
        same = devices[1].next_task()
        assert (same.task_id, same.round, same.plan) == (tasks[1].task_id, 1, tasks[1].plan)
        assert devices[0].answer(tasks[0], update(tasks[0], UNIT)) == "ACCEPTED"  # once
        assert devices[1].answer(same, update(same, 3 * UNIT)) == "ACCEPTED"
        for device, value in zip(devices, (4 * UNIT, 8 * UNIT), strict=True):
            task = device.next_task()
            assert task.round == 2
            assert device.answer(task, update(task, value)) == "ACCEPTED"
        until(lambda: here.state("r") == "DONE", 300)
        for device in devices:
            device.close()
        code, out, err = here.end()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert (code, "serving: enroll 127.0.0.1:" in out) == (0, True), err
        events = [json.loads(line)["event"] for line in err.splitlines() if line.startswith("{")]
        assert "service-started" in events
        assert events[-1] == "service-stopped"
        took = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        assert took < 12, f"{took:.2f} s for a whole life, of which serving again may take 5"
        assert not (here.folder / "ready.json").exists()

    with fr.open_fleet(here.folder) as fleet, fleet.store.read() as rows:
        done = rows.find(Run, "r")
        assert [row.state for row in rows.all(Round, run_id="r")] == ["published"] * 2
    data = fleet.artefacts.read(done.adapter)
    architecture = json.loads((POCKET_FOLDER / "config.json").read_text())
    initial = initial_adapter(adapter_manifest(architecture, LORA), LORA.init_seed)
    for name, tensor in decode_adapter(data, Artefact.of(data)).items():
        assert (tensor == initial[name] + np.float32(8 * UNIT)).all()


def test_what_is_wrong_in_the_settings_is_said_at_once(tmp_path):
    (tmp_path / "fleet.toml").write_text('hots = ["a"]')
    process = sordino("serve", "--config", tmp_path / "fleet.toml")
    _, err = process.communicate(timeout=300)
    assert (process.returncode, err.strip()) == (
        2,
        "sordino: unknown key hots: did you mean hosts?",
    )
