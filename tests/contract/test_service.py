"""The service over real TLS, as a device sees it when all goes well."""

from __future__ import annotations

import json

from support.devices import coordinator, until
from support.fleets import RUN, adapter, get, rows_of

from sordino.protos.v1 import fleet_pb2
from sordino.server.store import Accepted, Device, Run


def power(task, value, pad=0):
    return json.dumps({"round": task.round, "value": value, "pad": "." * pad}).encode()


def test_a_run_over_the_wire(tmp_path):
    with coordinator(tmp_path) as at:
        devices = [at.enrol(f"d{number}") for number in range(3)]
        for device in devices:
            terms = device.hello()
            assert terms.heartbeat_interval_ms == 60_000
        at.start(rounds=2)
        for number in (1, 2):
            for place, device in enumerate(devices):
                task = device.next_task()
                assert (task.run_id, task.round) == (RUN, number)
                assert device.fetch(task.base.sha256) == b"GGUF"
                assert device.fetch(task.manifest.sha256) == b"[]"
                assert (task.adapter is None) == (number == 1)
                if task.adapter:
                    assert json.loads(device.fetch(task.adapter.sha256)) == [[1, 7]]
                assert device.acknowledge(task) == "TAKEN"
                assert device.acknowledge(task) == "TAKEN"
                data = power(task, 1 << place, pad=700_000)
                assert device.answer(task, data) == "ACCEPTED"
                assert device.answer(task, data) == "ACCEPTED"  # again: the same, once
                assert device.acknowledge(task) == "ANSWERED"
            at.advance()
        assert adapter(at.fleet) == [[1, 7], [2, 7]]
        assert get(at.fleet, Run, RUN).state == "done"
        assert len(rows_of(at.fleet, Accepted)) == 6
        figures = at.service.figures()
        assert figures.accepted == 6
        assert figures.bytes_up > 6 * 700_000
        assert {word for _, word in figures.failures} == {"cancelled"}  # pulls, by the devices
        for device in devices:
            assert device.heartbeat().cancelled.task_id == ""
            assert device.call("Leave", fleet_pb2.LeaveRequest(reason="owner")).left_at_unix_ms
            assert get(at.fleet, Device, device.id).state == "left"
        until(lambda: not at.service.online())
