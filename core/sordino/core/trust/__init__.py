"""What both ends of the wire agree on about trust: tokens, names in certificates, TLS 1.3.

docs/keys.md says who holds which key. Nothing here knows gRPC.
"""

from sordino.core.trust.certificates import (
    LIFETIME_BEFORE_RENEWAL,
    DeviceName,
    device_of,
    device_uri,
    fleet_of,
    from_unix_ms,
    is_issued_by,
    key_sha256,
    not_after_ms,
    operator_of,
    operator_uri,
    operators_of,
    p256,
    public_pem,
    renew_after_ms,
    unix_ms,
)
from sordino.core.trust.private import (
    SECRET_MODE,
    load_private_key,
    private_pem,
    read_secret,
)
from sordino.core.trust.tokens import EnrolmentToken, decode_token, encode_token
from sordino.core.trust.transport import (
    fetch_authority,
    require_loopback,
    require_tls13,
    takes_tls12,
)

__all__ = [
    "LIFETIME_BEFORE_RENEWAL",
    "SECRET_MODE",
    "DeviceName",
    "EnrolmentToken",
    "decode_token",
    "device_of",
    "device_uri",
    "encode_token",
    "fetch_authority",
    "fleet_of",
    "from_unix_ms",
    "is_issued_by",
    "key_sha256",
    "load_private_key",
    "not_after_ms",
    "operator_of",
    "operator_uri",
    "operators_of",
    "p256",
    "private_pem",
    "public_pem",
    "read_secret",
    "renew_after_ms",
    "require_loopback",
    "require_tls13",
    "takes_tls12",
    "unix_ms",
]
