"""Who is a member of the fleet: its authority, enrolment, renewal, revocation, and every call.

Functions over a `MembershipStore`, an `Authority` and a moment. Only `interceptor` and `listener`
know gRPC, and are imported by their own names.
"""

from sordino.server.enroll.authority import (
    Authority,
    Issued,
    issue_device,
    issue_server,
    new_authority,
    revocation_list,
)
from sordino.server.enroll.calls import Call, Transport, authenticate
from sordino.server.enroll.files import (
    create_folder,
    load_authority,
    read_server_certificate,
    write_revocation_list,
    write_server_certificate,
)
from sordino.server.enroll.membership import Terms, enroll, make_token, renew, revoke
from sordino.server.enroll.operators import (
    OperatorRecord,
    admit_operator,
    check_operator,
    create_operators,
    dismiss_operator,
    operators_in_force,
)
from sordino.server.enroll.peers import Peer, check_peer
from sordino.server.enroll.records import (
    CertificateRecord,
    DeviceRecord,
    MembershipStore,
    TokenRecord,
)

__all__ = [
    "Authority",
    "Call",
    "CertificateRecord",
    "DeviceRecord",
    "Issued",
    "MembershipStore",
    "OperatorRecord",
    "Peer",
    "Terms",
    "TokenRecord",
    "Transport",
    "admit_operator",
    "authenticate",
    "check_operator",
    "check_peer",
    "create_folder",
    "create_operators",
    "dismiss_operator",
    "enroll",
    "issue_device",
    "issue_server",
    "load_authority",
    "make_token",
    "new_authority",
    "operators_in_force",
    "read_server_certificate",
    "renew",
    "revocation_list",
    "revoke",
    "write_revocation_list",
    "write_server_certificate",
]
