"""The ways into a fleet and out of it. Nothing here needs a model: a light command can leave."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import hashes

from sordino.client.agent.addresses import parse_address
from sordino.client.agent.enrolment import enrol
from sordino.client.agent.home import Whereabouts, load_whereabouts, save_whereabouts
from sordino.client.agent.journal import Journal
from sordino.client.agent.link import CallError, Link
from sordino.client.agent.timing import FleetClock, Surroundings
from sordino.client.identity import IDENTITY, NEXT_KEY, Identity, load_identity
from sordino.core import durable
from sordino.core.errors import TrustError
from sordino.core.trust import decode_token
from sordino.protos.v1 import fleet_pb2

GONE: Final = frozenset({"certificate-revoked", "unknown-device"})
"""What a coordinator says to a device that left before."""

_LOG = logging.getLogger(__name__)


def join_fleet(
    folder: Path,
    address: str,
    token: str,
    surroundings: Surroundings,
    *,
    fleet_address: str = "",
    name: str = "",
) -> Identity:
    """Become a member of a fleet, or go on as one.

    Args:
        folder: The agent's.
        address: Of the coordinator's listener for enrolment; empty: as kept.
        token: One-time; empty: the device is a member already.
        surroundings: Time and chance.
        fleet_address: Of the listener for members; empty: as kept, or one port after `address`.
        name: For people.

    Raises:
        TrustError: The device is no member and has no token, or isn't let in.
        ContractError: The token is none, or whoever answers isn't who it was made for.
    """
    if address:
        enroll = parse_address(address)
        fleet = parse_address(fleet_address) if fleet_address else enroll.next_port()
        save_whereabouts(folder, Whereabouts(enroll=str(enroll), fleet=str(fleet)))
    elif fleet_address:
        kept = load_whereabouts(folder).enroll
        moved = str(parse_address(fleet_address))
        save_whereabouts(folder, Whereabouts(enroll=kept, fleet=moved))
    where = load_whereabouts(folder)
    if not (folder / IDENTITY).exists():
        if not token:
            raise TrustError(f"{folder} isn't enrolled: sordino join {where.enroll} --token TOKEN")
        return enrol(folder, token, parse_address(where.enroll), surroundings, name=name)
    identity = load_identity(folder, now_unix_ms=surroundings.wall_ms())
    if token:
        pinned = decode_token(token).authority_sha256
        if pinned not in {one.fingerprint(hashes.SHA256()) for one in identity.authorities}:
            raise TrustError(
                f"{folder} belongs to another fleet than the token: sordino leave, or another "
                "--folder"
            )
        _LOG.info("enrolled as %s already: the token isn't used", identity.device_id)
    return identity


def leave_fleet(folder: Path, surroundings: Surroundings, *, reason: str = "owner") -> str:
    """Leave a fleet for good, and forget the identity. The ledger stays: what was spent is spent.

    Args:
        folder: The agent's.
        surroundings: Time and chance.
        reason: ``owner``, ``replaced`` or ``retired``.

    Returns:
        The name that the device had.

    Raises:
        TrustError: It is no member, or the coordinator can't be asked: nothing is forgotten then.
    """
    where = load_whereabouts(folder)
    identity = load_identity(folder, now_unix_ms=surroundings.wall_ms())
    link = Link(where.fleet, identity, FleetClock(surroundings.wall_ms))
    try:
        link.call("Leave", fleet_pb2.LeaveRequest(reason=reason), fleet_pb2.LeaveResponse)
    except CallError as error:
        if error.reason not in GONE:
            raise TrustError(
                f"{where.fleet} didn't take leave ({error}): try again, or have its operator "
                f"revoke {identity.device_id}"
            ) from error
    finally:
        link.close()
    for name in (IDENTITY, NEXT_KEY):
        (folder / name).unlink(missing_ok=True)
    Journal(folder).forget()
    durable.sync_folder(folder)
    return identity.device_id
