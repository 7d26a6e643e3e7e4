"""Verify an exported ledger on an auditor's laptop: dp-accounting and cryptography, no fleet.

    python -m sordino.privacy.verify ledger.jsonl --head kept-heads.jsonl

`sordino ledger verify` says the same. Nothing imports this module: it is run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sordino.core.errors import SordinoError
from sordino.privacy.ledger import read_heads
from sordino.privacy.plan import describe, verify_ledger
from sordino.privacy.plan.verification import DELTA
from sordino.privacy.policy import read_unsigned


def main(arguments: Sequence[str] | None = None) -> int:
    """Verify from the command line; returns the exit code: 0 if nothing is wrong."""
    parser = argparse.ArgumentParser(
        prog="sordino.privacy.verify", description="Verify an exported ledger."
    )
    parser.add_argument("ledger", type=Path, help="an export (JSONL), or a ledger itself")
    parser.add_argument("--head", type=Path, help="heads that another party kept")
    parser.add_argument("--delta", type=float, default=DELTA, help="delta of the figures")
    parser.add_argument("--max-epsilon", type=float, help="a cap on every key's epsilon")
    parser.add_argument("--policy", type=Path, action="append", help="a policy, for its caps")
    parser.add_argument("--artefacts", type=Path, help="a folder of what was released")
    parser.add_argument("--all-artefacts", action="store_true", help="a missing one is a defect")
    given = parser.parse_args(arguments)
    try:
        verdict = verify_ledger(
            given.ledger,
            delta=given.delta,
            heads=read_heads(given.head) if given.head else (),
            policies=[read_unsigned(path) for path in given.policy or ()],
            max_epsilon=given.max_epsilon,
            artefacts=given.artefacts,
            all_artefacts=given.all_artefacts,
        )
    except SordinoError as error:
        sys.stderr.write(f"sordino: {error}\n")
        return 2
    for line in describe(verdict, given.delta):
        sys.stdout.write(line + "\n")
    return 0 if verdict.ok else 1


if __name__ == "__main__":
    sys.exit(main())
