"""The schema's history: each step as plain SQL, never changed once it was released.

A step runs in the transaction that also raises the version, so a crash leaves the old schema or the
new one. The same text serves SQLite and PostgreSQL: `{integer}`, `{strict}` are what they differ
in, and the triggers that keep events append-only.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, text

from sordino.core.errors import StoreError, expected

_FIRST: Final = (
    "CREATE TABLE artefacts (sha256 TEXT PRIMARY KEY, size {integer} NOT NULL CHECK (size >= 1),"
    " kind TEXT NOT NULL CHECK (kind IN ('base', 'manifest', 'plan', 'adapter', 'update')),"
    " made_ms {integer} NOT NULL){strict}",
    "CREATE TABLE runs (run_id TEXT PRIMARY KEY,"
    " state TEXT NOT NULL CHECK (state IN ('running', 'paused', 'done', 'stopped', 'failed')),"
    " settings TEXT NOT NULL, trust TEXT NOT NULL,"
    " plan TEXT NOT NULL REFERENCES artefacts, base TEXT NOT NULL REFERENCES artefacts,"
    " manifest TEXT NOT NULL REFERENCES artefacts, adapter TEXT NOT NULL,"
    " rounds_planned {integer} NOT NULL CHECK (rounds_planned >= 1),"
    " rounds_done {integer} NOT NULL, cohort {integer} NOT NULL CHECK (cohort >= 1),"
    " extra {integer} NOT NULL CHECK (extra >= 0), min_updates {integer} NOT NULL,"
    " timeout_ms {integer} NOT NULL CHECK (timeout_ms > 0), max_answer_bytes {integer} NOT NULL,"
    " patience {integer} NOT NULL CHECK (patience >= 1), reason TEXT NOT NULL,"
    " started_ms {integer} NOT NULL){strict}",
    "CREATE TABLE rounds (run_id TEXT NOT NULL REFERENCES runs,"
    " round {integer} NOT NULL CHECK (round >= 1), state TEXT NOT NULL CHECK (state IN ('planned',"
    " 'open', 'collecting', 'closing', 'aggregated', 'published', 'failed', 'given-up')),"
    " plan TEXT NOT NULL, adapter_before TEXT NOT NULL, adapter_after TEXT NOT NULL,"
    " asked {integer} NOT NULL, cohort {integer} NOT NULL, min_updates {integer} NOT NULL,"
    " max_answer_bytes {integer} NOT NULL, opened_ms {integer} NOT NULL,"
    " deadline_ms {integer} NOT NULL, closed_ms {integer} NOT NULL, reason TEXT NOT NULL,"
    " PRIMARY KEY (run_id, round)){strict}",
    # Two rounds of a run never overlap.
    "CREATE UNIQUE INDEX one_round ON rounds (run_id)"
    " WHERE state NOT IN ('published', 'failed', 'given-up')",
    "CREATE TABLE devices (device_id TEXT PRIMARY KEY, name TEXT NOT NULL, state TEXT NOT NULL"
    " CHECK (state IN ('active', 'resting', 'suspect', 'revoked', 'left')), software TEXT NOT NULL,"
    " capabilities TEXT NOT NULL, failures {integer} NOT NULL, rests_until_ms {integer} NOT NULL,"
    " last_seen_ms {integer} NOT NULL, enrolled_ms {integer} NOT NULL,"
    " gone_ms {integer} NOT NULL, gone_because TEXT NOT NULL){strict}",
    "CREATE TABLE tasks (task_id TEXT PRIMARY KEY, run_id TEXT NOT NULL, round {integer} NOT NULL,"
    " device_id TEXT NOT NULL REFERENCES devices, state TEXT NOT NULL CHECK (state IN ('offered',"
    " 'taken', 'answered', 'rejected', 'declined', 'expired', 'cancelled')),"
    " deadline_ms {integer} NOT NULL, reason TEXT NOT NULL,"
    " UNIQUE (run_id, round, device_id), FOREIGN KEY (run_id, round) REFERENCES rounds){strict}",
    "CREATE INDEX tasks_of_device ON tasks (device_id, state)",
    "CREATE TABLE uploads (upload_id TEXT PRIMARY KEY,"
    " task_id TEXT NOT NULL UNIQUE REFERENCES tasks, device_id TEXT NOT NULL REFERENCES devices,"
    " sha256 TEXT NOT NULL, size {integer} NOT NULL CHECK (size >= 1),"
    " stored {integer} NOT NULL CHECK (stored BETWEEN 0 AND size), streams {integer} NOT NULL,"
    " state TEXT NOT NULL CHECK (state IN ('open', 'checking', 'accepted', 'rejected',"
    " 'discarded')), reason TEXT NOT NULL){strict}",
    "CREATE INDEX uploads_by_state ON uploads (state)",
    "CREATE TABLE accepted (run_id TEXT NOT NULL, round {integer} NOT NULL,"
    " device_id TEXT NOT NULL REFERENCES devices, task_id TEXT NOT NULL UNIQUE REFERENCES tasks,"
    " sha256 TEXT NOT NULL, accepted_ms {integer} NOT NULL, entry_index {integer} NOT NULL,"
    " entry_sha256 TEXT NOT NULL, public_key TEXT NOT NULL, signature TEXT NOT NULL,"
    " PRIMARY KEY (run_id, round, device_id),"
    " FOREIGN KEY (run_id, round) REFERENCES rounds){strict}",
    "CREATE TABLE certificates (serial TEXT PRIMARY KEY, number {integer} NOT NULL UNIQUE,"
    " device_id TEXT NOT NULL REFERENCES devices, key_sha256 TEXT NOT NULL, der TEXT NOT NULL,"
    " not_after_ms {integer} NOT NULL, used {integer} NOT NULL CHECK (used IN (0, 1))){strict}",
    "CREATE INDEX certificates_of_device ON certificates (device_id)",
    "CREATE INDEX certificates_of_key ON certificates (key_sha256)",
    "CREATE TABLE tokens (token_id TEXT PRIMARY KEY, verifier TEXT NOT NULL, label TEXT NOT NULL,"
    " expires_ms {integer} NOT NULL, device_id TEXT NOT NULL){strict}",
    "CREATE TABLE nonces (device_id TEXT NOT NULL REFERENCES devices, nonce TEXT NOT NULL,"
    " statement_sha256 TEXT NOT NULL, expires_ms {integer} NOT NULL,"
    " PRIMARY KEY (device_id, nonce)){strict}",
    "CREATE INDEX nonces_by_end ON nonces (expires_ms)",
    "CREATE TABLE events (number {integer} PRIMARY KEY, at_ms {integer} NOT NULL,"
    " kind TEXT NOT NULL, run_id TEXT NOT NULL, round {integer} NOT NULL,"
    " device_id TEXT NOT NULL, detail TEXT NOT NULL){strict}",
    "CREATE TABLE commands (request_id TEXT PRIMARY KEY, command_sha256 TEXT NOT NULL,"
    " answer TEXT NOT NULL, at_ms {integer} NOT NULL){strict}",
    "CREATE TABLE heads (device_id TEXT NOT NULL REFERENCES devices,"
    " entry_index {integer} NOT NULL, entry_sha256 TEXT NOT NULL, public_key TEXT NOT NULL,"
    " signature TEXT NOT NULL, received_ms {integer} NOT NULL,"
    " PRIMARY KEY (device_id, entry_index)){strict}",
)
_APPEND_ONLY: Final = {
    "sqlite": (
        "CREATE TRIGGER events_update BEFORE UPDATE ON events"
        " BEGIN SELECT RAISE(ABORT, 'events are append-only'); END",
        "CREATE TRIGGER events_delete BEFORE DELETE ON events"
        " BEGIN SELECT RAISE(ABORT, 'events are append-only'); END",
    ),
    "postgresql": (
        "CREATE FUNCTION events_are_append_only() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'events are append-only'; END $$",
        "CREATE TRIGGER events_fixed BEFORE UPDATE OR DELETE OR TRUNCATE ON events"
        " FOR EACH STATEMENT EXECUTE FUNCTION events_are_append_only()",
    ),
}
_WORDS: Final = {
    "sqlite": {"integer": "INTEGER", "strict": " STRICT"},
    "postgresql": {"integer": "BIGINT", "strict": ""},
}

# What a round asks of its devices beside the plan is fixed when it opens, as all the rest is.
_SETTINGS_OF_ROUNDS: Final = ("ALTER TABLE rounds ADD COLUMN settings TEXT NOT NULL DEFAULT ''",)

_MEASURES: Final = ("ALTER TABLE runs ADD COLUMN measures TEXT NOT NULL DEFAULT ''",)

MIGRATIONS: Final = (
    {dialect: (*_FIRST, *_APPEND_ONLY[dialect]) for dialect in _WORDS},
    dict.fromkeys(_WORDS, _SETTINGS_OF_ROUNDS),
    dict.fromkeys(_WORDS, _MEASURES),
)
"""Step k, from 0, brings a database of version k to version k + 1, by dialect."""


def version(connection: Connection) -> int:
    """The version of a database's schema; 0: it is empty."""
    connection.execute(text("CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL)"))
    found = connection.execute(text("SELECT max(version) FROM schema_version")).scalar()
    return int(found or 0)


def migrate(connection: Connection, to: int = len(MIGRATIONS)) -> int:
    """Bring a database to a version, within the caller's write transaction.

    Args:
        connection: With an open transaction of the only writer.
        to: The version wanted.

    Returns:
        The version that the database had.

    Raises:
        StoreError: The database is of a later version: this program is too old for it.
    """
    had = version(connection)
    if had > to:
        required = f"<= {to}"
        raise StoreError(expected("schema version", had, required, "use a newer sordino"))
    dialect = connection.dialect.name
    for step in range(had, to):
        for statement in MIGRATIONS[step][dialect]:
            connection.exec_driver_sql(statement.format(**_WORDS[dialect]))
        connection.execute(text("INSERT INTO schema_version VALUES (:v)"), {"v": step + 1})
    return had
