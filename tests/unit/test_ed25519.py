"""Keys under which anybody can sign are no keys: of the ledger, the policy's owner, the auditor."""

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from sordino.core.ed25519 import public_key
from sordino.privacy.ledger.keys import LedgerKey, signature_holds

P = 2**255 - 19
D = -121665 * pow(121666, -1, P) % P


def doubled(x, y):
    """Twice a point of the curve -x² + y² = 1 + d·x²·y²."""
    cross = D * x * x * y * y % P
    return 2 * x * y * pow(1 + cross, -1, P) % P, (y * y + x * x) * pow(1 - cross, -1, P) % P


def root(square):
    found = pow(square, (P + 3) // 8, P)
    if found * found % P != square:
        found = found * pow(2, (P - 1) // 4, P) % P
    return found if found * found % P == square else None


def small_order_encodings():
    """Every 32 bytes that decode to a point whose order divides 8: found by their order."""
    identity, found = (0, 1), set()
    eighth = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
    for y in (0, 1, P - 1, eighth, P - eighth):
        x = root((y * y - 1) * pow(D * y * y + 1, -1, P) % P)
        point = (x, y)
        for _ in range(3):
            point = doubled(*point)
        assert point == identity
        for value in [v for v in (y, y + P) if v < 2**255]:  # with what isn't reduced
            found |= {value.to_bytes(32, "little"), (value | 1 << 255).to_bytes(32, "little")}
    return sorted(found)


def test_there_is_such_a_key_and_the_library_takes_it():
    """Else the refusal would guard against nothing."""
    key = Ed25519PublicKey.from_public_bytes((1).to_bytes(32, "little"))
    key.verify((1).to_bytes(32, "little") + bytes(32), b"whatever")


@pytest.mark.parametrize("raw", small_order_encodings(), ids=bytes.hex)
def test_keys_of_small_order_are_refused(raw):
    with pytest.raises(ValueError, match="small order"):
        public_key(raw.hex())
    for entry in ("00" * 32, "01" * 32, "ab" * 32, "fe" * 32):
        assert not signature_holds(raw.hex(), entry, raw.hex() + "00" * 32)


def test_ordinary_keys_are_taken():
    for _ in range(20):
        private = Ed25519PrivateKey.generate()
        raw = private.public_key().public_bytes_raw().hex()
        public_key(raw).verify(private.sign(b"words"), b"words")
        with pytest.raises(InvalidSignature):
            public_key(raw).verify(private.sign(b"words"), b"other words")
    key = LedgerKey.generate()
    assert signature_holds(key.public, "ab" * 32, key.sign("ab" * 32))
