"""The service that devices call: `sordino.v1.Fleet` over TLS 1.3, on two listeners.

It adds nothing to what may happen: membership is `sordino.server.enroll`'s, tasks and uploads are
`sordino.server.fleet_rounds`'. Here are the wire, its limits, and who is there. docs/service.md
describes it.
"""

from sordino.server.service.figures import ServiceFigures, ServiceState
from sordino.server.service.service import FleetService
from sordino.server.service.settings import ServiceSettings

__all__ = ["FleetService", "ServiceFigures", "ServiceSettings", "ServiceState"]
