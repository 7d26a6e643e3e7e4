"""A fleet on one machine, all of it real: `ca init`, `serve`, four devices that join, five rounds.

Without noise, and with the same seeds, its adapter is a simulation's bit for bit. With noise, every
device's ledger verifies.
"""

from __future__ import annotations

import json
import signal
from contextlib import ExitStack
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict
from support.devices import until
from support.serving import Served, run, served, sordino

from sordino.client.model.registry import POCKET, POCKET_FOLDER
from sordino.client.session import NodeSettings
from sordino.core.adapters import initial_adapter
from sordino.core.contract import Artefact, decode_adapter
from sordino.core.records import Tensors
from sordino.core.settings import to_table, to_toml
from sordino.privacy.ledger import read_ledger
from sordino.privacy.plan import verify_ledger
from sordino.server import fleet_rounds as fr
from sordino.server.app import federation_app
from sordino.server.fleet_config import load_fleet, new_run
from sordino.server.fleet_run import strategy_of
from sordino.server.rounds import MemoryRounds
from sordino.server.store import Accepted, Round, Run
from sordino.sim.grid import LocalGrid

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

ROUNDS = 5
USERS = ("hamlet/HAMLET", "hamlet/HORATIO", "macbeth/MACBETH", "othello/IAGO")
SETTINGS = """
[lora]
rank = 2
[train]
local_steps = 2
[privacy]
trust = "{trust}"
[federation]
rounds = 5
min_updates = 4
round_timeout_s = 900
"""


def node(user: str, trust: str) -> NodeSettings:
    none = trust == "none"
    return NodeSettings(
        user=user,
        share=0.3,
        max_tokens=24,
        allow_no_privacy=none,
        noise_seed=11 if none else -1,
    )


def join_all(here: Served, folder: Path, trust: str, stack: ExitStack) -> list[Path]:
    """Four devices, each a process; they are told to stop, and must end well, at the end."""
    homes = []
    for place, user in enumerate(USERS):
        home = folder / f"device-{place}"
        home.mkdir()
        (home / "device.toml").write_text(f"[node]\n{to_toml(node(user, trust))}")
        command = ["join", here.enroll_address, "--token", here.token(), "--folder", home]
        process = sordino(*command, "--fleet-address", here.fleet_address)
        stack.callback(process.kill)
        stack.callback(end, process)
        homes.append(home)
    return homes


def end(process) -> None:  # type: ignore[no-untyped-def]
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err


def federate(folder: Path, trust: str) -> tuple[Served, list[Path]]:
    """A run of a fleet, from nothing to its end."""
    with served(folder / "fleet") as here, ExitStack() as stack:
        homes = join_all(here, folder, trust, stack)
        here.start_run("run", SETTINGS.format(trust=trust), len(USERS))
        until(lambda: here.state("run") != "RUNNING", 1500)
        assert here.state("run") == "DONE"
        stack.close()
        assert here.end()[0] == 0
    return here, homes


def in_a_simulation(new: fr.NewRun, trust: str, folder: Path) -> Tensors:
    """The same run on `LocalGrid`."""
    nodes = [
        to_table(node(user, trust)) | {"state_dir": str(folder / f"node-{place}")}
        for place, user in enumerate(USERS)
    ]
    row = Run(
        run_id=new.run_id,
        state="running",
        settings=new.settings,
        trust=new.trust,
        plan="",
        base=new.base,
        manifest="",
        rounds_planned=new.rounds,
        cohort=new.cohort,
        min_updates=new.min_updates,
        timeout_ms=new.timeout_ms,
        max_answer_bytes=new.max_answer_bytes,
        started_ms=0,
    )
    strategy = strategy_of(row, new.plan, new.manifest, new.min_updates, lambda _: None)  # type: ignore[arg-type, return-value]
    rounds = MemoryRounds(strategy, initial_adapter(strategy.manifest, strategy.lora.init_seed))
    with LocalGrid(nodes) as grid:
        federation_app(rounds)(grid, Context(1, 1, {}, RecordDict(), {}))
    return rounds.adapter


def test_without_noise_the_adapter_is_a_simulations_bit_for_bit(tmp_path: Path) -> None:
    here, _ = federate(tmp_path, "none")
    config = load_fleet(here.folder / "fleet.toml")
    with fr.open_fleet(here.folder) as fleet:
        with fleet.store.read() as rows:
            done = rows.find(Run, "run")
            assert done is not None
            assert rows.count(Accepted) == ROUNDS * len(USERS)
        data = fleet.artefacts.read(done.adapter)
        toml = SETTINGS.format(trust="none").encode()
        new = new_run(fleet, config, "run", toml, len(USERS), shipped={POCKET: POCKET_FOLDER})
    assert new.settings == done.settings
    simulated = in_a_simulation(new, "none", tmp_path)
    changed = decode_adapter(data, Artefact.of(data))
    assert any(tensor.any() for tensor in changed.values())
    for name, tensor in changed.items():
        assert tensor.tobytes() == simulated[name].tobytes()


def test_with_noise_all_ledgers_verify_and_say_what_was_released(tmp_path: Path) -> None:
    here, homes = federate(tmp_path, "local")
    with fr.open_fleet(here.folder) as fleet, fleet.store.read() as rows:
        rounds = rows.all(Round, run_id="run")
        receipts = {(row.round, row.entry_sha256) for row in rows.all(Accepted)}
    assert [row.state for row in rounds] == ["published"] * ROUNDS
    charged = set()
    for home in homes:
        ledger = home / "state" / "ledger.db"
        assert verify_ledger(ledger).ok
        run("ledger", "verify", ledger)
        (book,) = read_ledger(ledger).values()
        for charge in book.charges.values():
            assert charge.state == "released"
            assert charge.commit is not None
            charged.add((charge.reserve.round, charge.commit.sha256))
    assert charged == receipts
    assert len(charged) == ROUNDS * len(USERS)
    assert json.dumps(sorted(number for number, _ in charged))
