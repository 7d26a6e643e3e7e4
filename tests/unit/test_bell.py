"""The bell: rings are heard by threads and by tasks, whichever came first."""

import asyncio
import threading

from sordino.server.bell import Bell


def test_a_waiting_thread_is_woken() -> None:
    bell, heard = Bell(), []
    thread = threading.Thread(target=lambda: heard.append(bell.wait(0, 30.0)))
    thread.start()
    bell.ring()
    thread.join(30.0)
    assert heard == [1]


def test_a_ring_before_the_wait_is_not_missed() -> None:
    bell = Bell()
    bell.ring()
    assert bell.wait(0, 0.0) == 1
    assert asyncio.run(bell.listen(0, 0.0)) == 1


def test_the_wait_ends_with_its_time() -> None:
    bell = Bell()
    assert bell.wait(0, 0.0) == 0
    assert asyncio.run(bell.listen(0, 0.001)) == 0


def test_a_task_is_woken_from_another_thread() -> None:
    bell = Bell()

    async def listen() -> int:
        threading.Timer(0.05, bell.ring).start()
        return await bell.listen(0, 30.0)

    assert asyncio.run(listen()) == 1


def test_it_rings_when_a_transaction_is_durable_and_passes_every_step_on() -> None:
    bell, steps = Bell(), []
    at = bell.hook(steps.append)
    for step in ("open-round:written", "open-round:durable"):
        at(step)
    assert bell.count == 1
    assert steps == ["open-round:written", "open-round:durable"]
