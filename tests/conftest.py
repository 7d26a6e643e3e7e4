"""One thread a test process: tiny tensors gain nothing from more, and tests run two at a time."""

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")

# As a coordinator's process does it: before anything imports grpc, whose TLS is then 1.3 alone.
from sordino.core.trust import require_tls13  # noqa: E402

require_tls13()
