"""Stock Flower's part of bench/fleet.py: arrays down, arrays up, their mean; no training."""

import json
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

server = ServerApp()
client = ClientApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    """Answer with an array as large as the one that came."""
    size = message.content["adapter"]["values"].numpy().size
    update = np.full(size, 1.0, np.float32)
    return Message(RecordDict({"update": _record(update)}), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Time rounds of each size."""
    config = context.run_config
    nodes = _wait_for(grid, int(config["nodes"]))
    took: dict[str, list[float]] = {}
    for size in str(config["sizes"]).split(","):
        adapter = np.zeros(max(int(size) // 4, 1), np.float32)
        took[size] = []
        for number in range(int(config["rounds"])):
            began = time.perf_counter()
            adapter = _one_round(grid, nodes, adapter, number)
            took[size].append(time.perf_counter() - began)
    Path(str(config["out"])).write_text(json.dumps(took), encoding="utf-8")


def _one_round(grid: Grid, nodes: list[int], adapter: np.ndarray, number: int) -> np.ndarray:
    content = RecordDict({"adapter": _record(adapter), "config": ConfigRecord({"round": number})})
    messages = [
        Message(content, dst_node_id=node, message_type="train", group_id=str(number))
        for node in nodes
    ]
    updates = [
        reply.content["update"]["values"].numpy()
        for reply in grid.send_and_receive(messages, timeout=600)
    ]
    if len(updates) != len(nodes):
        raise RuntimeError(f"expected {len(nodes)} answers, got {len(updates)}")
    return adapter + sum(updates) / len(updates)


def _record(values: np.ndarray) -> ArrayRecord:
    return ArrayRecord({"values": Array(values)})


def _wait_for(grid: Grid, count: int) -> list[int]:
    while len(nodes := sorted(grid.get_node_ids())) < count:
        time.sleep(0.2)
    return nodes[:count]
