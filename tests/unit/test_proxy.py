"""The proxy that breaks connections for other tests: each fault, at its byte, and nothing else."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from support.proxy import Fault, Proxy, chaos

BIG = bytes(range(256)) * 4096  # a megabyte, whose every part shows its place
WAIT_S = 60.0


class Echo:
    """A server that sends back what comes, and remembers each connection's bytes."""

    def __init__(self) -> None:
        self.seen: list[bytearray] = []
        self.open = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                end, _ = self._listener.accept()
                self.seen.append(bytearray())
                self.open += 1
                threading.Thread(target=self._run, args=(end, self.seen[-1]), daemon=True).start()

    def _run(self, end: socket.socket, seen: bytearray) -> None:
        with contextlib.suppress(OSError), end:
            while data := end.recv(1 << 16):
                seen += data
                end.sendall(data)
        self.open -= 1

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


def dial(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), WAIT_S)


def send(end: socket.socket, data: bytes) -> threading.Thread:
    """Send beside, for what comes back must be read meanwhile."""

    def go() -> None:
        with contextlib.suppress(OSError):
            end.sendall(data)
            end.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=go, daemon=True)
    thread.start()
    return thread


def receive(end: socket.socket, most: int = 1 << 30) -> bytes:
    """What comes up to the end, however that is."""
    got = bytearray()
    with contextlib.suppress(ConnectionError):
        while len(got) < most and (data := end.recv(1 << 16)):
            got += data
    return bytes(got)


def until(holds: object) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def exchange(proxy: Proxy, data: bytes = BIG) -> bytes:
    got = b""
    with contextlib.suppress(ConnectionError), dial(proxy) as end:  # which may be reset at once
        sender = send(end, data)
        got = receive(end)
        sender.join(WAIT_S)
    return got


def test_without_faults_everything_passes_and_ends(echo: Echo) -> None:
    with Proxy(echo.port) as proxy:
        assert exchange(proxy) == BIG
        assert exchange(proxy, b"") == b""
        until(lambda: echo.open == 0)
        assert [link.passed for link in proxy.links] == [
            {"up": len(BIG), "down": len(BIG)},
            {"up": 0, "down": 0},
        ]
    assert proxy.happened == []


@pytest.mark.parametrize("after", [0, 1, 100_000, len(BIG) - 1])
def test_a_cut_comes_at_its_byte_on_the_way_up(echo: Echo, after: int) -> None:
    fault = Fault("cut", "up", after)
    with Proxy(echo.port, lambda number: [fault] if number == 0 else []) as proxy:
        got = exchange(proxy)
        assert BIG.startswith(got)
        assert proxy.happened == [(0, fault)]
        assert proxy.links[0].passed["up"] == after
        seen = len(echo.seen)  # a connection may be gone before it is accepted
        assert exchange(proxy) == BIG  # the script left the next connection alone
        until(lambda: echo.open == 0)
        for heard in echo.seen[:seen]:
            assert len(heard) <= after
            assert BIG.startswith(heard)


def test_a_cut_comes_at_its_byte_on_the_way_down(echo: Echo) -> None:
    with Proxy(echo.port, lambda _: [Fault("cut", "down", 70_000)]) as proxy:
        got = exchange(proxy)
        assert BIG.startswith(got)
        assert len(got) <= 70_000 == proxy.links[0].passed["down"]


def test_what_is_lost_up_never_comes_and_down_still_passes(echo: Echo) -> None:
    with Proxy(echo.port, lambda _: [Fault("loss", "up", 5)]) as proxy, dial(proxy) as end:
        end.sendall(b"hello, world")
        assert receive(end, 5) == b"hello"
        end.sendall(b"anybody?")
        end.settimeout(0.2)
        with pytest.raises(TimeoutError):  # neither an answer nor an end
            end.recv(1)
        assert bytes(echo.seen[0]) == b"hello"
        assert echo.open == 1


def test_what_is_lost_down_was_heard(echo: Echo) -> None:
    with Proxy(echo.port, lambda _: [Fault("loss", "down", 3)]) as proxy, dial(proxy) as end:
        end.sendall(b"hello")
        until(lambda: list(map(bytes, echo.seen)) == [b"hello"])
        assert receive(end, 3) == b"hel"
        end.settimeout(0.2)
        with pytest.raises(TimeoutError):
            end.recv(1)


def test_a_stalled_sender_waits_until_it_is_cut(echo: Echo) -> None:
    with Proxy(echo.port, lambda _: [Fault("stall", "up", 10)]) as proxy, dial(proxy) as end:
        sender = send(end, BIG * 32)
        assert receive(end, 10) == BIG[:10]
        sender.join(0.2)
        assert sender.is_alive()  # the buffers are full
        proxy.cut()
        sender.join(WAIT_S)
        assert not sender.is_alive()
        assert receive(end) == b""


def test_delays_add_up(echo: Echo) -> None:
    slow = [Fault("delay", "up", 0, 0.05), Fault("delay", "down", 0, 0.05)]
    with Proxy(echo.port, lambda _: slow) as proxy, dial(proxy) as end:
        began = time.monotonic()
        for _ in range(3):
            end.sendall(b"ping")
            assert receive(end, 4) == b"ping"
        assert time.monotonic() - began >= 3 * 2 * 0.05
        assert {fault for _, fault in proxy.happened} == set(slow)


def test_a_twin_repeats_the_first_bytes_and_goes(echo: Echo) -> None:
    with Proxy(echo.port, lambda _: [Fault("twin", "up", 6)]) as proxy:
        assert exchange(proxy, b"hello, world") == b"hello, world"
        until(lambda: len(echo.seen) == 2 and echo.open == 0)
        assert sorted(map(bytes, echo.seen)) == [b"hello,", b"hello, world"]


def test_faults_of_one_connection_come_in_turn(echo: Echo) -> None:
    faults = [Fault("cut", "up", 9), Fault("delay", "up", 2, 0.01), Fault("twin", "up", 4)]
    with Proxy(echo.port, lambda _: faults) as proxy:
        exchange(proxy, b"hello, world")
        assert [fault.kind for _, fault in proxy.happened] == ["delay", "twin", "cut"]


def test_unplugged_nobody_comes_through(echo: Echo) -> None:
    with Proxy(echo.port) as proxy:
        with dial(proxy) as end:
            end.sendall(b"a")
            assert receive(end, 1) == b"a"
            proxy.unplug()
            assert receive(end) == b""
        assert exchange(proxy) == b""
        assert len(proxy.links) == 1
        proxy.plug()
        assert exchange(proxy) == BIG


def test_a_server_that_is_down_looks_like_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    with Proxy(port) as proxy:
        assert exchange(proxy) == b""


def test_chaos_is_the_same_for_the_same_seed() -> None:
    def drawn(seed: int) -> list[object]:
        script = chaos(seed, rate=0.3, kinds=("cut", "loss", "stall", "delay", "twin"))
        return [tuple(script(number)) for number in range(1000)]

    assert drawn(1) == drawn(1) != drawn(2)
    faults = [fault for faults in drawn(1) for fault in faults]  # type: ignore[attr-defined]
    assert 250 < len(faults) < 350
    assert {fault.kind for fault in faults} == {"cut", "loss", "stall", "delay", "twin"}
    assert {fault.way for fault in faults} == {"up", "down"}
    assert min(f.after for f in faults) < 10 < 100_000 < max(f.after for f in faults) <= 1 << 20


def test_through_chaos_every_connection_passes_a_part_or_all(echo: Echo) -> None:
    data = BIG[:20_000]
    script = chaos(7, rate=0.5, kinds=("cut",), most=40_000)
    with Proxy(echo.port, script) as proxy:
        whole = 0
        for number in range(40):
            got = exchange(proxy, data)
            assert data.startswith(got)
            whole += got == data
            for fault in script(number):
                assert got != data or fault.after >= len(data)
        assert 10 < whole < 40
