"""The agent before the real service over TLS: when all goes well, and when it does not."""

from __future__ import annotations

from support.agents import advance_until, charges, coordinator, done, running, start
from support.devices import until
from support.fleets import rows_of

from sordino.client.agent.journal import OUTBOX, TASK
from sordino.privacy.plan import verify_ledger
from sordino.server.store import Accepted, Device, Head


def test_a_run_over_the_wire(tmp_path):
    home = tmp_path / "device"
    with coordinator(tmp_path / "fleet") as at, running(home, at) as device:
        until(at.service.online)
        start(at, rounds=2)
        advance_until(at, lambda: done(at))
        until(lambda: device.steps.count("task:forgotten") == 2)
        assert charges(home) == {1: "released", 2: "released"}
        assert device.session.trained == 2
        assert len(rows_of(at.fleet, Accepted)) == 2
        (row,) = rows_of(at.fleet, Device)
        assert (row.device_id, row.state) == (device.device_id, "active")
        assert len(rows_of(at.fleet, Head)) >= 2
    assert not (home / TASK).exists()
    assert list((home / OUTBOX).iterdir()) == []
    assert verify_ledger(home / "state/ledger.db", artefacts=home / "state/updates").ok
