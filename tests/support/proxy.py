"""A TCP proxy on loopback that breaks connections as a script says, at the very byte.

It stands between a device and its coordinator and knows nothing of what passes:

    faults = [Fault("cut", "up", after=100_000)]
    with Proxy(coordinator_port, script=lambda number: faults if number == 0 else []) as proxy:
        ...  # connect to proxy.port: the first connection ends after 100,000 bytes of the client's

A script gives each connection its faults by its number, counted from 0 in the order of arrival, so
that what happens depends on no clock. `chaos` draws them from a seed.

| fault | from byte `after` of its way on |
|---|---|
| `cut` | both sides are ended at once, in the middle of whatever it was |
| `loss` | what comes is read and dropped; the other way still passes |
| `stall` | nothing is read any more: buffers fill up, and the sender waits |
| `delay` | each piece waits `seconds` before it passes |
| `twin` | the server sees the client's first `after` bytes again, on a connection that then ends |
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["cut", "loss", "stall", "delay", "twin"]
Way = Literal["up", "down"]
PIECE = 1 << 16
RESET = struct.pack("ii", 1, 0)  # linger for no time: closing resets


@dataclass(frozen=True)
class Fault:
    """One thing that happens to one way of one connection; see the module's table."""

    kind: Kind
    way: Way = "up"
    after: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        assert self.after >= 0
        assert self.kind != "twin" or self.way == "up"
        assert (self.kind == "delay") == (self.seconds > 0)


Script = Callable[[int], Sequence[Fault]]


def no_faults(number: int) -> Sequence[Fault]:
    """Everything passes."""
    return ()


def chaos(
    seed: int, *, rate: float, kinds: Sequence[Kind] = ("cut", "loss", "stall"), most: int = 1 << 20
) -> Script:
    """A part of all connections get one fault each, drawn from the seed and the number alone.

    Args:
        seed: Printed by the test that fails.
        rate: The chance of a connection to be hit.
        kinds: What can happen.
        most: The fault begins before this byte; small ones are as likely as large.
    """

    def script(number: int) -> Sequence[Fault]:
        draw = random.Random(f"{seed}/{number}")
        if draw.random() >= rate:
            return ()
        kind = draw.choice(kinds)
        way: Way = "up" if kind == "twin" else draw.choice(("up", "down"))
        after = int(most ** draw.random())
        return (Fault(kind, way, after, 0.02 if kind == "delay" else 0.0),)

    return script


@dataclass
class Link:
    """A connection through the proxy: what passed, and which faults came about."""

    number: int
    faults: Sequence[Fault]
    client: socket.socket
    server: socket.socket
    passed: dict[Way, int] = field(default_factory=lambda: {"up": 0, "down": 0})
    happened: list[Fault] = field(default_factory=list)
    first: bytearray = field(default_factory=bytearray)  # the client's, for a twin
    over: threading.Event = field(default_factory=threading.Event)

    def ends(self, way: Way) -> tuple[socket.socket, socket.socket]:
        return (self.client, self.server) if way == "up" else (self.server, self.client)

    def cut(self) -> None:
        """End both sides at once. Who carries it closes them: a number may be another's by then."""
        self.over.set()
        for end in (self.client, self.server):
            _end(end)


class Proxy:
    """Listens on a free port of loopback and passes on to another, faults and all.

    Args:
        to: The port behind it.
        script: The faults of each connection; may be replaced between connections.
    """

    def __init__(self, to: int, script: Script = no_faults) -> None:
        self.to = to
        self.script = script
        self.links: list[Link] = []
        self.plugged = True
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port = int(self._listener.getsockname()[1])

    def __enter__(self) -> Proxy:
        self._acceptor.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        _end(self._listener)
        self._acceptor.join()
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive(), "a thread of the proxy hangs"

    def cut(self) -> None:
        """Cut every connection that there is now; new ones may come."""
        for link in list(self.links):
            link.cut()

    def unplug(self) -> None:
        """Cut every connection, and reset each new one as it comes, until `plug`."""
        self.plugged = False
        self.cut()

    def plug(self) -> None:
        """Let connections pass again."""
        self.plugged = True

    @property
    def happened(self) -> list[tuple[int, Fault]]:
        """The faults that came about, each with its connection's number."""
        return [(link.number, fault) for link in self.links for fault in link.happened]

    def _start(self, call: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=call, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                if not self.plugged:
                    raise ConnectionRefusedError
                server = self._dial()
            except OSError:  # as a client sees it whose coordinator is down
                _end(client)
                client.close()
                continue
            number = len(self.links)
            link = Link(number, sorted(self.script(number), key=_turn), client, server)
            self.links.append(link)
            if self._closing.is_set() or not self.plugged:
                link.cut()
            self._start(self._run, link)

    def _dial(self) -> socket.socket:
        server = socket.create_connection(("127.0.0.1", self.to), 10)
        server.settimeout(None)
        return server

    def _run(self, link: Link) -> None:
        """Carry both ways, and close once both have ended."""
        down = threading.Thread(target=self._carry, args=(link, "down"), daemon=True)
        down.start()
        self._carry(link, "up")
        down.join()
        for end in link.ends("up"):
            end.close()

    def _carry(self, link: Link, way: Way) -> None:
        """Pass one way on up to each of its faults in turn, then to the end."""
        lag = 0.0
        try:
            for fault in (fault for fault in link.faults if fault.way == way):
                if not self._pass(link, way, lag, until=fault.after):
                    return
                link.happened.append(fault)
                lag = fault.seconds or lag
                if not self._act(link, fault):
                    return
            self._pass(link, way, lag)
        except OSError:  # it was cut, or a side went away: the other side sees that
            link.cut()

    def _act(self, link: Link, fault: Fault) -> bool:
        """Do what a fault says; whether its way goes on after it."""
        match fault.kind:
            case "cut":
                link.cut()
            case "loss":
                source, _ = link.ends(fault.way)
                while source.recv(PIECE):
                    pass  # and nobody is told that the sender has ended
            case "stall":
                link.over.wait()
            case "twin":
                self._start(self._twin, bytes(link.first))
        return fault.kind in ("delay", "twin")

    def _pass(self, link: Link, way: Way, lag: float, until: int | None = None) -> bool:
        """Pass on up to a byte; False: the sender ended before, and its receiver was told so."""
        source, sink = link.ends(way)
        while until is None or link.passed[way] < until:
            left = PIECE if until is None else min(PIECE, until - link.passed[way])
            data = source.recv(left)
            if not data:
                sink.shutdown(socket.SHUT_WR)
                return False
            if lag:
                link.over.wait(lag)
            if any(fault.kind == "twin" for fault in link.faults) and way == "up":
                link.first += data
            sink.sendall(data)
            link.passed[way] += len(data)
        return True

    def _twin(self, first: bytes) -> None:
        with contextlib.suppress(OSError), self._dial() as twin:
            twin.sendall(first)
            twin.settimeout(1)
            twin.recv(PIECE)


def _turn(fault: Fault) -> int:
    return fault.after


def _end(end: socket.socket) -> None:
    """Wake whoever waits on a socket, and have what closes it reset the connection."""
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
