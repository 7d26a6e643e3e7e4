"""The rows of the coordinator's store, as frozen data: one class a table, one field a column.

Times are milliseconds since 1970 by the coordinator's clock, 0 where there is none yet; hashes are
SHA-256 in hex, empty where there is none. docs/coordinator.md has the tables and their states.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

RunState = Literal["running", "paused", "done", "stopped", "failed"]
RoundState = Literal[
    "planned", "open", "collecting", "closing", "aggregated", "published", "failed", "given-up"
]
TaskState = Literal["offered", "taken", "answered", "rejected", "declined", "expired", "cancelled"]
UploadState = Literal["open", "checking", "accepted", "rejected", "discarded"]
DeviceState = Literal["active", "resting", "suspect", "revoked", "left"]
ArtefactKind = Literal["base", "manifest", "plan", "adapter", "update"]

UNFINISHED_TASKS: Final[tuple[TaskState, ...]] = ("offered", "taken")
UNFINISHED_UPLOADS: Final[tuple[UploadState, ...]] = ("open", "checking")
FINAL_ROUNDS: Final[tuple[RoundState, ...]] = ("published", "failed", "given-up")


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run.

    Attributes:
        run_id: Its name.
        state: Whether rounds are opened.
        settings: What it was started from, as TOML.
        trust: The plan's trust model. Under `central` the cohort is fixed and no count decides.
        plan: The plan in force, an artefact.
        base: The base, an artefact.
        manifest: The adapter's names and shapes, an artefact.
        adapter: The present adapter, an artefact; empty: the public initial one.
        rounds_planned: The plan's rounds. A failed round has used its number up.
        rounds_done: Rounds that were published.
        cohort: Updates that a round wants.
        extra: Devices asked beyond the cohort, for some will not answer.
        min_updates: A round with fewer fails.
        timeout_ms: From a round's opening to its deadline.
        max_answer_bytes: The largest update that will be taken.
        patience: So many failed rounds in a row fail the run.
        reason: Where it failed: why, a stable word.
        started_ms: When.
        measures: The run whose adapter it measures, each round a paid look; empty: it trains.
    """

    run_id: str
    state: RunState
    settings: str
    trust: str
    plan: str
    base: str
    manifest: str
    adapter: str = ""
    rounds_planned: int
    rounds_done: int = 0
    cohort: int
    extra: int = 0
    min_updates: int
    timeout_ms: int
    max_answer_bytes: int
    patience: int = 3
    reason: str = ""
    started_ms: int
    measures: str = ""


@dataclass(frozen=True, kw_only=True)
class Round:
    """A round. All but its number is fixed when it is opened, and stays over restarts.

    Attributes:
        run_id: Whose.
        round: From 1.
        state: How far it came.
        plan: The plan it is under.
        settings: What else devices are told of the work, as JSON: `lora`, and `train`
            unless it is a look at a metric.
        adapter_before: What devices are given; empty: the initial one.
        adapter_after: What was made of their answers; empty: nothing yet.
        asked: Devices that were asked.
        cohort: Updates with which it closes before its deadline; 0: never so.
        min_updates: With fewer it fails.
        max_answer_bytes: The largest update that is taken.
        opened_ms: When it was opened.
        deadline_ms: When it is closed whatever came.
        closed_ms: When answers were no longer taken.
        reason: Where it made no adapter: why, a stable word.
    """

    run_id: str
    round: int
    state: RoundState = "planned"
    plan: str = ""
    adapter_before: str = ""
    adapter_after: str = ""
    asked: int = 0
    cohort: int = 0
    min_updates: int = 0
    max_answer_bytes: int = 0
    opened_ms: int = 0
    deadline_ms: int = 0
    closed_ms: int = 0
    reason: str = ""
    settings: str = ""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A member of a round's cohort: a round asks a device once, so member and task are one row."""

    task_id: str
    run_id: str
    round: int
    device_id: str
    state: TaskState = "offered"
    deadline_ms: int
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Upload:
    """An answer on its way. `stored` bytes of `size` are on stable storage.

    `streams` counts the calls that sent parts of it: only the newest may go on.
    """

    upload_id: str
    task_id: str
    device_id: str
    sha256: str
    size: int
    stored: int = 0
    streams: int = 0
    state: UploadState = "open"
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class ArtefactRow:
    """A file of the artefact store."""

    sha256: str
    size: int
    kind: ArtefactKind
    made_ms: int


@dataclass(frozen=True, kw_only=True)
class Accepted:
    """An update that was acknowledged: of a device and a round there is one.

    The last four are the receipt: an entry of the device's ledger, signed by its holder. Empty,
    and -1, under a plan without privacy.
    """

    run_id: str
    round: int
    device_id: str
    task_id: str
    sha256: str
    accepted_ms: int
    entry_index: int = -1
    entry_sha256: str = ""
    public_key: str = ""
    signature: str = ""


@dataclass(frozen=True, kw_only=True)
class Device:
    """A member of the fleet, or one that was.

    `resting`: after `failures` in a row, not asked before `rests_until_ms`. `suspect`: its ledger
    fell behind a head that it had. `revoked` and `left` are final: when and why is in the last two.
    """

    device_id: str
    name: str
    state: DeviceState = "active"
    software: str = ""
    capabilities: str = "{}"
    failures: int = 0
    rests_until_ms: int = 0
    last_seen_ms: int = 0
    enrolled_ms: int
    gone_ms: int = 0
    gone_because: str = ""


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """A device's certificate, by serial number; `number` counts them in the order of issue."""

    serial: str
    number: int
    device_id: str
    key_sha256: str
    der: str
    not_after_ms: int
    used: int = 0


@dataclass(frozen=True, kw_only=True)
class Token:
    """A one-time token of enrolment: a hash of it alone is known. Used: whom it admitted."""

    token_id: str
    verifier: str
    label: str
    expires_ms: int
    device_id: str = ""


@dataclass(frozen=True, kw_only=True)
class Nonce:
    """A nonce that a device used, and the statement it was used for."""

    device_id: str
    nonce: str
    statement_sha256: str
    expires_ms: int


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened, for operators. Never changed, never deleted; `detail` is JSON."""

    number: int
    at_ms: int
    kind: str
    run_id: str = ""
    round: int = 0
    device_id: str = ""
    detail: str = "{}"


@dataclass(frozen=True, kw_only=True)
class Command:
    """An operator's command that was carried out, and its answer as JSON: a retry gets it again."""

    request_id: str
    command_sha256: str
    answer: str
    at_ms: int


@dataclass(frozen=True, kw_only=True)
class Head:
    """A head of a device's ledger, kept so that a rollback of it shows."""

    device_id: str
    entry_index: int
    entry_sha256: str
    public_key: str
    signature: str
    received_ms: int
