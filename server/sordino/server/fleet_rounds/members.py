"""Membership in the coordinator's own store: what `sordino.server.enroll` asks of one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sordino.server.enroll.records import CertificateRecord, DeviceRecord, TokenRecord
from sordino.server.fleet_rounds import devices
from sordino.server.fleet_rounds.context import DATABASE, Fleet, tell
from sordino.server.store import (
    Artefacts,
    Certificate,
    Device,
    Nonce,
    SqlStore,
    Token,
    Writer,
)


class Members:
    """`MembershipStore` over a fleet's store: a member is a device that may be asked.

    Args:
        fleet: The fleet.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._store = fleet.store

    def add_token(self, token: TokenRecord) -> None:
        """See `MembershipStore.add_token`."""
        row = Token(
            token_id=token.token_id,
            verifier=token.verifier.hex(),
            label=token.label,
            expires_ms=token.expires_at_unix_ms,
            device_id=token.device_id,
        )
        with self._store.write("add-token") as tx:
            tx.add(row)

    def token(self, token_id: str) -> TokenRecord | None:
        """See `MembershipStore.token`."""
        with self._store.read() as rows:
            found = rows.find(Token, token_id)
        return None if found is None else _token(found)

    def tokens(self) -> Sequence[TokenRecord]:
        """See `MembershipStore.tokens`."""
        with self._store.read() as rows:
            return [_token(row) for row in rows.all(Token)]

    def withdraw_token(self, token_id: str, at_unix_ms: int) -> bool:
        """See `MembershipStore.withdraw_token`."""
        with self._store.write("withdraw-token") as tx:
            row = tx.find(Token, token_id)
            if row is None or row.device_id:
                return False
            tx.change(row, expires_ms=min(row.expires_ms, at_unix_ms))
            return True

    def admit(self, token_id: str, device: DeviceRecord, certificate: CertificateRecord) -> bool:
        """See `MembershipStore.admit`."""
        with self._store.write("admit") as tx:
            token = tx.find(Token, token_id)
            if token is None or token.device_id:
                return False
            tx.change(token, device_id=device.device_id)
            tx.add(
                Device(
                    device_id=device.device_id,
                    name=device.display_name,
                    enrolled_ms=device.enrolled_at_unix_ms,
                )
            )
            _add(tx, certificate)
            tell(self._fleet, tx, "device-enrolled", device_id=device.device_id)
            return True

    def device(self, device_id: str) -> DeviceRecord | None:
        """See `MembershipStore.device`."""
        with self._store.read() as rows:
            found = rows.find(Device, device_id)
        return None if found is None else _device(found)

    def devices(self) -> Sequence[DeviceRecord]:
        """See `MembershipStore.devices`."""
        with self._store.read() as rows:
            return [_device(row) for row in rows.all(Device)]

    def revoke_device(self, device_id: str, at_unix_ms: int, because: str) -> bool:
        """See `MembershipStore.revoke_device`; its unfinished tasks are cancelled."""
        with self._store.write("revoke-device") as tx:
            if tx.find(Device, device_id) is None:
                return False
            devices.dismiss(self._fleet, tx, device_id, "revoked", at_unix_ms, because)
            return True

    def add_certificate(self, certificate: CertificateRecord) -> None:
        """See `MembershipStore.add_certificate`."""
        with self._store.write("add-certificate") as tx:
            _add(tx, certificate)

    def certificate(self, serial: str) -> CertificateRecord | None:
        """See `MembershipStore.certificate`."""
        with self._store.read() as rows:
            found = rows.find(Certificate, serial)
        return None if found is None else _certificate(found)

    def certificates_of_key(self, key_sha256: str) -> Sequence[CertificateRecord]:
        """See `MembershipStore.certificates_of_key`."""
        with self._store.read() as rows:
            found = rows.all(Certificate, order="number", key_sha256=key_sha256)
        return [_certificate(row) for row in found]

    def certificates_of_device(self, device_id: str) -> Sequence[CertificateRecord]:
        """See `MembershipStore.certificates_of_device`."""
        with self._store.read() as rows:
            found = rows.all(Certificate, order="number", device_id=device_id)
        return [_certificate(row) for row in found]

    def mark_used(self, serial: str) -> None:
        """See `MembershipStore.mark_used`."""
        with self._store.write("mark-used") as tx:
            row = tx.find(Certificate, serial)
            if row is not None:
                tx.change(row, used=1)

    def remember_nonce(
        self, device_id: str, nonce: bytes, statement_sha256: str, keep_until_unix_ms: int
    ) -> str | None:
        """See `MembershipStore.remember_nonce`."""
        with self._store.write("remember-nonce") as tx:
            known = tx.find(Nonce, device_id, nonce.hex())
            if known is not None:
                return known.statement_sha256
            tx.add(
                Nonce(
                    device_id=device_id,
                    nonce=nonce.hex(),
                    statement_sha256=statement_sha256,
                    expires_ms=keep_until_unix_ms,
                )
            )
            return None

    def forget_nonces(self, now_unix_ms: int) -> int:
        """See `MembershipStore.forget_nonces`."""
        with self._store.write("forget-nonces") as tx:
            return tx.remove(Nonce, below=("expires_ms", now_unix_ms))


@contextmanager
def open_beside(folder: Path, *, url: str | None = None) -> Iterator[Fleet]:
    """Open a coordinator's store without its lock, for members and devices: beside one that serves.

    Each change is one transaction of the database, which lets one writer in at a time, whatever
    process it is in. Files are the coordinator's alone: nothing that touches them may be called.

    Args:
        folder: The coordinator's.
        url: The database, if it isn't the folder's own SQLite file.

    Raises:
        StoreError: The database can't be used.
    """
    store = SqlStore(url or folder / DATABASE)
    try:
        yield Fleet(store=store, artefacts=Artefacts(folder))
    finally:
        store.close()


def _add(tx: Writer, certificate: CertificateRecord) -> None:
    tx.add(
        Certificate(
            serial=certificate.serial,
            number=tx.largest(Certificate, "number") + 1,
            device_id=certificate.device_id,
            key_sha256=certificate.key_sha256,
            der=certificate.der.hex(),
            not_after_ms=certificate.not_after_unix_ms,
            used=int(certificate.used),
        )
    )


def _token(row: Token) -> TokenRecord:
    return TokenRecord(
        token_id=row.token_id,
        verifier=bytes.fromhex(row.verifier),
        label=row.label,
        expires_at_unix_ms=row.expires_ms,
        device_id=row.device_id,
    )


def _device(row: Device) -> DeviceRecord:
    return DeviceRecord(
        device_id=row.device_id,
        display_name=row.name,
        enrolled_at_unix_ms=row.enrolled_ms,
        revoked_at_unix_ms=row.gone_ms,
        revoked_because=row.gone_because,
    )


def _certificate(row: Certificate) -> CertificateRecord:
    return CertificateRecord(
        serial=row.serial,
        device_id=row.device_id,
        key_sha256=row.key_sha256,
        der=bytes.fromhex(row.der),
        not_after_unix_ms=row.not_after_ms,
        used=bool(row.used),
    )
