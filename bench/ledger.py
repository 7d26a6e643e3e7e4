"""What the ledger costs: a round, opening it after years, verifying an export.

Run as `python bench/ledger.py [FOLDER]`; the folder says which disk.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from sordino.privacy.ledger import Checks, Ledger, export_ledgers, verify_export


class Plan:
    """As the ledger sees one."""

    run_id, rounds, unit, neighbouring = "bench", 10**6, "record", "add-or-remove-one"
    sha256 = "ab" * 32

    def event_fields(self):
        """The event of a round."""
        return {"kind": "bench", "noise_multiplier": 1.0, "sampling_rate": 0.01, "steps": 10}


class NoAccountant:
    """Leaves ε out of the time."""

    def check(self, entry):
        """Accept anything."""

    def epsilon(self, charges, unit):
        """No figure."""
        return 0.0


def timed(call: Callable[[], object]) -> float:
    """Milliseconds of a call."""
    began = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - began)


def a_round(ledger: Ledger, number: int) -> float:
    """Milliseconds of reserve, commit and release."""

    def go() -> None:
        charge = ledger.charge(Plan(), number, "data")
        ledger.release(charge.number, f"{number:064x}")

    return timed(go)


def report(path: Path, took: list[float]) -> None:
    """Print what a ledger of this size costs."""
    out, checks = path.with_suffix(".jsonl"), Checks(accountant=NoAccountant())
    entries = Ledger(path, "c").head.index + 1
    print(f"{entries} entries, {path.stat().st_size / 1e6:.1f} MB:")
    print(f"  a round: median {statistics.median(took):.0f} ms of {len(took)}")
    print(f"  open: {timed(lambda: Ledger(path, 'c')):.0f} ms")
    print(f"  export: {timed(lambda: export_ledgers([path], out)):.0f} ms")
    print(f"  verify, without epsilon: {timed(lambda: verify_export(out, checks)):.0f} ms")


def main() -> None:
    """Grow a ledger, and report on the way."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp())
    path, first = root / "ledger.db", 1
    print(f"make a ledger: {timed(lambda: Ledger(path, 'c')):.0f} ms")
    ledger = Ledger(path, "c")
    for rounds in (66, 666, 3333):
        took = [a_round(ledger, number) for number in range(first, rounds + 1)]
        first = rounds + 1
        report(path, took)


if __name__ == "__main__":
    main()
