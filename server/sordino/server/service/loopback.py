"""Who calls where there is no TLS: a coordinator and its devices in tests on one machine.

The statement says who, and its signature must be by a certified key of that device. That the
connection is the device's, nobody can know here; which is why only loopback may do without TLS.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding

from sordino.core import contract
from sordino.core.contract.signing import ECDSA, PREFIX
from sordino.core.trust import p256
from sordino.protos.v1 import common_pb2
from sordino.server.enroll import MembershipStore, Transport


def stated_transport(store: MembershipStore) -> Callable[[Any, bytes], Transport]:
    """For `Authentication`: as if the caller had shown the certificate whose key signed the call.

    Args:
        store: The certificates that were issued.
    """

    def transport(context: Any, data: bytes) -> Transport:
        signed = contract.from_bytes(data, common_pb2.Signed)
        stated = contract.from_bytes(signed.statement, common_pb2.Statement)
        shown = [
            x509.load_der_x509_certificate(known.der)
            for known in store.certificates_of_device(stated.device_id)
        ]
        signers = [each for each in shown if _signed_by(each, signed)] or shown
        pems = [each.public_bytes(Encoding.PEM) for each in signers[-1:]]
        return {"ssl_tls_version": [b"TLSv1.3"], "x509_pem_cert": pems}

    return transport


def _signed_by(certificate: x509.Certificate, signed: common_pb2.Signed) -> bool:
    try:
        key = p256(certificate.public_key())
        key.verify(signed.signature, PREFIX + signed.statement, ECDSA)
    except InvalidSignature:
        return False
    return True
