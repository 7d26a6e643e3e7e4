"""The answers of `Operator` as plain tables: what `--format json` prints, and an export holds.

Keys are stable: docs/operators.md lists them. What isn't told, or isn't there yet, is None.
"""

from __future__ import annotations

import json
from typing import Any

from sordino.core.errors import ConfigError, expected
from sordino.protos.v1 import common_pb2, operator_pb2

Table = dict[str, Any]


def run_table(run: operator_pb2.Run) -> Table:
    """A run."""
    return {
        "run_id": run.run_id,
        "state": _word(operator_pb2.RunState.Name(run.state), "RUN_STATE_"),
        "reason": run.reason or None,
        "rounds_done": run.rounds_done,
        "rounds_planned": run.rounds_planned,
        "cohort": run.cohort,
        "min_updates": run.min_updates,
        "started_at_unix_ms": run.started_at_unix_ms,
        "epsilon": [epsilon_table(one) for one in run.epsilon],
        "plan": json.loads(run.plan),
        "plan_sha256": run.plan_sha256.hex(),
        "base": _artefact(run.base),
        "adapter": _artefact(run.adapter) if run.HasField("adapter") else None,
    }


def epsilon_table(one: operator_pb2.Epsilon) -> Table:
    """A bound with everything that it means."""
    return {
        "epsilon": one.epsilon if one.HasField("epsilon") else None,
        "delta": one.delta,
        "unit": one.unit,
        "neighbouring": one.neighbouring,
        "sampling": one.sampling,
        "accountant": one.accountant,
        "scope": one.scope,
        "trust": one.trust,
    }


def round_table(one: operator_pb2.Round) -> Table:
    """A round. Nobody is asked to a round without a cohort: it is secret then."""
    told = one.asked > 0
    return {
        "run_id": one.run_id,
        "round": one.round,
        "state": _word(operator_pb2.RoundState.Name(one.state), "ROUND_STATE_"),
        "asked": one.asked if told else None,
        "received": one.received if told else None,
        "dropped": {each.reason: each.count for each in one.dropped} if told else None,
        "bytes_up": one.bytes_up if told else None,
        "bytes_down": one.bytes_down or None,
        "opened_at_unix_ms": one.opened_at_unix_ms,
        "closed_at_unix_ms": one.closed_at_unix_ms or None,
        "adapter": _artefact(one.adapter) if one.HasField("adapter") else None,
    }


def device_table(one: operator_pb2.Device) -> Table:
    """A device."""
    return {
        "device_id": one.device_id,
        "name": one.display_name,
        "state": _word(operator_pb2.DeviceState.Name(one.state), "DEVICE_STATE_"),
        "software": one.software or None,
        "last_seen_unix_ms": one.last_seen_unix_ms or None,
        "not_after_unix_ms": one.not_after_unix_ms,
        "accepted": one.accepted,
        "failures": one.failures,
        "ledger_head": head_table(one.ledger_head) if one.HasField("ledger_head") else None,
    }


def device_state(word: str) -> operator_pb2.DeviceState:
    """A device's state by its word.

    Raises:
        ConfigError: It is none.
    """
    try:
        state: operator_pb2.DeviceState = operator_pb2.DeviceState.Value(
            f"DEVICE_STATE_{word.upper()}"
        )
    except ValueError as error:
        words = [_word(name, "DEVICE_STATE_") for name in operator_pb2.DeviceState.keys()[1:]]
        raise ConfigError(expected("state", word, f"one of {', '.join(words)}")) from error
    return state


def head_table(head: common_pb2.LedgerHead) -> Table:
    """A head of a ledger."""
    return {
        "entry_index": head.entry_index,
        "entry_sha256": head.entry_sha256.hex(),
        "public_key": head.public_key.hex(),
        "signature": head.signature.hex(),
    }


def device_head_table(one: operator_pb2.DeviceLedgerHead) -> Table:
    """A device's head."""
    return {
        "device_id": one.device_id,
        "received_at_unix_ms": one.received_at_unix_ms,
        **head_table(one.head),
    }


def event_table(event: operator_pb2.Event) -> Table:
    """Something that happened: under `run`, `round`, `device` or `alarm` what it is about."""
    made: Table = {"number": event.number, "at_unix_ms": event.at_unix_ms}
    match event.WhichOneof("what"):
        case "run":
            return made | {"run": run_table(event.run)}
        case "round":
            return made | {"round": round_table(event.round)}
        case "device":
            return made | {"device": device_table(event.device)}
        case "alarm":
            return made | {"alarm": alarm_table(event.alarm)}
        case _:
            return made  # of a later revision


def alarm_table(alarm: operator_pb2.Alarm) -> Table:
    """Something that somebody should look at."""
    return {
        "reason": alarm.reason,
        "message": alarm.message,
        "run_id": alarm.run_id or None,
        "device_id": alarm.device_id or None,
    }


def _artefact(one: common_pb2.Artefact) -> Table:
    return {"sha256": one.sha256.hex(), "size": one.size}


def _word(name: str, prefix: str) -> str:
    """An enum's value as a word.

    >>> _word("ROUND_STATE_GIVEN_UP", "ROUND_STATE_")
    'given-up'
    """
    return name.removeprefix(prefix).lower().replace("_", "-")
