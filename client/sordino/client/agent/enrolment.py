"""Becoming a member: a one-time token, a first contact that it pins, and a certificate."""

from __future__ import annotations

import logging
from pathlib import Path

import grpc

from sordino.client.agent.addresses import Address
from sordino.client.agent.link import CALL_S, SERVICE, CallError, call_error
from sordino.client.agent.timing import Backoff, Surroundings
from sordino.client.identity import (
    Identity,
    accept_enrolment,
    enrolment_credentials,
    enrolment_request,
)
from sordino.core import contract
from sordino.core.errors import TrustError
from sordino.core.trust import decode_token, fetch_authority
from sordino.protos.v1 import fleet_pb2

MOST_ATTEMPTS = 6  # about a minute: somebody stands before the device and waits
_LOG = logging.getLogger(__name__)


def enrol(
    folder: Path, token: str, address: Address, surroundings: Surroundings, *, name: str = ""
) -> Identity:
    """Become a member of the fleet that a token is for, and keep the identity durably.

    The same token may be used again after a failure or a crash: with the key that is kept beside
    it, it gives the same certificate.

    Args:
        folder: The device's state.
        token: As the operator gave it.
        address: Of the coordinator's listener for enrolment.
        surroundings: Time and chance.
        name: For people.

    Raises:
        ContractError: The token is none, or whoever answers isn't who it was made for.
        TrustError: The coordinator refuses, doesn't answer, or the device is a member already.
    """
    request = contract.to_bytes(enrolment_request(folder, token, display_name=name))
    backoff = Backoff(surroundings.chance)
    for attempt in range(1, MOST_ATTEMPTS + 1):
        try:
            response = _call(token, address, request)
        except (TrustError, CallError) as error:
            failure = error.failure if isinstance(error, CallError) else None
            never = failure is not None and failure.retry == "never"
            if attempt == MOST_ATTEMPTS or never:
                raise TrustError(f"{address} didn't enrol this device: {error}") from error
            wait = backoff.next_s(failure)
            _LOG.warning("%s; again in %.0f s", error, wait)
            if surroundings.pause(wait):
                raise TrustError("stopped before the device was enrolled") from error
        else:
            return accept_enrolment(folder, token, response)
    raise AssertionError("the last attempt ends above")


def _call(token: str, address: Address, request: bytes) -> fleet_pb2.EnrollResponse:
    authority = fetch_authority(address.host, address.port, decode_token(token).authority_sha256)
    with grpc.secure_channel(str(address), enrolment_credentials(authority)) as channel:
        try:
            data = channel.unary_unary(SERVICE + "Enroll")(request, timeout=CALL_S)
        except grpc.RpcError as error:
            raise call_error("Enroll", error) from error
    return contract.from_bytes(data, fleet_pb2.EnrollResponse)
