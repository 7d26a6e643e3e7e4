"""The ledger: what each client has spent, signed, on disk before any noise is drawn.

`store` is the device's own (SQLite); `entries` says what an entry is and how it is encoded, `book`
which may follow which; `export` and `verify` are for everybody else. Nothing here computes ε:
entries keep events.
"""

from sordino.privacy.ledger.book import Book, Standing
from sordino.privacy.ledger.charges import Charge, Limit
from sordino.privacy.ledger.entries import (
    GENESIS,
    WHOLE,
    Abandoned,
    Chargeable,
    Commit,
    Entry,
    Head,
    Opened,
    Rekeyed,
    Released,
    Reserve,
    Retired,
    against,
)
from sordino.privacy.ledger.export import (
    KeptHead,
    export_ledgers,
    read_charges,
    read_heads,
    read_ledger,
    write_heads,
)
from sordino.privacy.ledger.store import Ledger, no_hook
from sordino.privacy.ledger.verify import (
    Accountant,
    Budget,
    Checks,
    Defect,
    Verdict,
    verify_export,
)
from sordino.privacy.ledger.writer import Hook

__all__ = [
    "GENESIS",
    "WHOLE",
    "Abandoned",
    "Accountant",
    "Book",
    "Budget",
    "Charge",
    "Chargeable",
    "Checks",
    "Commit",
    "Defect",
    "Entry",
    "Head",
    "Hook",
    "KeptHead",
    "Ledger",
    "Limit",
    "Opened",
    "Rekeyed",
    "Released",
    "Reserve",
    "Retired",
    "Standing",
    "Verdict",
    "against",
    "export_ledgers",
    "no_hook",
    "read_charges",
    "read_heads",
    "read_ledger",
    "verify_export",
    "write_heads",
]
