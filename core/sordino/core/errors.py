"""The one tree of errors that Sordino raises.

    SordinoError             1   (the exit code)
    ├── ConfigError          2   a setting is unknown, of the wrong type, or impossible
    ├── DataError            2   a dataset can't be read, or has no usable record
    ├── ModelError           2   a base model or adapter can't be had, or isn't supported
    ├── PlanError            2   a privacy plan is impossible, or was used against its terms
    ├── PolicyError          2   a device's policy can't be read or believed
    ├── PolicyRefusedError   1   the device's policy refuses a request
    ├── TrustError           2   a key, certificate or address can't be had, or can't be believed
    ├── ClaimError           1   a claim that the ledger doesn't bear out, or can't be compared
    ├── AuditError           1   an audit is impossible, or can't be read or believed
    ├── LedgerError          1   the ledger can't be read, written or believed
    ├── StoreError           1   the coordinator's store can't be read, written or believed
    ├── ReportError          1   a report is impossible, or can't be read
    ├── WireError            1   bytes or records are not the message they should be
    │   └── ContractError    1   the same on the fleet's contract, with a stable word
    ├── UpdateRejectedError  1   an update differs from what the round allows
    ├── RoundFailedError     1   too few valid updates to go on
    └── RoundGivenUpError    1   a round wasn't held, or not to its end

A message names the field, the value, what was required, and what to do next.
"""

from __future__ import annotations


class SordinoError(Exception):
    """Base of every error that is the user's to act on."""

    exit_code = 1


class ConfigError(SordinoError):
    """A setting is unknown, has the wrong type, or can't be."""

    exit_code = 2


class DataError(SordinoError):
    """A dataset can't be read, or holds nothing usable."""

    exit_code = 2


class ModelError(SordinoError):
    """A base model or an adapter can't be had, or isn't supported."""

    exit_code = 2


class PlanError(SordinoError):
    """A privacy plan is impossible, or something tried to go beyond its terms."""

    exit_code = 2


class PolicyError(SordinoError):
    """A device's policy can't be read, isn't its owner's, or holds something impossible."""

    exit_code = 2


class PolicyRefusedError(SordinoError):
    """The device's policy refuses a request, before anything was touched.

    Attributes:
        reason: A stable word that may be told to anybody: it says nothing of the data.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason


class TrustError(SordinoError):
    """A key, a certificate or an address can't be had, or can't be believed."""

    exit_code = 2


class ClaimError(SordinoError):
    """A claim that its ledger doesn't bear out, or two that can't be compared."""


class AuditError(SordinoError):
    """An audit is impossible as asked, or one that was made can't be read or believed."""


class LedgerError(SordinoError):
    """The ledger can't be read, written or believed."""


class WireError(SordinoError):
    """Bytes or records are not the message that they should be."""


class ContractError(WireError):
    """Bytes are not the message of the fleet's contract that they should be.

    Attributes:
        reason: A stable word that goes on the wire, for example ``"unknown-field"``.
        retry_after_ms: Not before so many milliseconds; 0: the caller's own backoff.
    """

    def __init__(self, reason: str, message: str, *, retry_after_ms: int = 0) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.retry_after_ms = retry_after_ms


class StoreError(SordinoError):
    """The coordinator's store can't be read, written or believed."""


class ReportError(SordinoError):
    """A report holds something impossible, or can't be read or written."""


class UpdateRejectedError(SordinoError):
    """An update differs from what the round's manifest and plan allow.

    Attributes:
        reason: A stable word for logs and counters, for example ``"not-finite"``.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason


class RoundFailedError(SordinoError):
    """A round ended with fewer valid updates than it needs."""


class RoundGivenUpError(SordinoError):
    """A round wasn't held to its end: its run was paused or stopped, or the coordinator stops."""


def expected(field: str, value: object, required: str, todo: str = "") -> str:
    """Phrase a refusal the same way everywhere.

    >>> expected("clip_norm", -1.0, "> 0")
    'expected clip_norm > 0, got -1.0'
    >>> expected("delta", 1.0, "in (0, 1)", "use 1e-5, or less than one over the number of records")
    'expected delta in (0, 1), got 1.0: use 1e-5, or less than one over the number of records'
    """
    tail = f": {todo}" if todo else ""
    return f"expected {field} {required}, got {value!r}{tail}"
