"""`sordino export`: a run's folder, its adapter, or the heads of its devices' ledgers as a file."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

import typer

from sordino.cli.operators import (
    ADDRESS,
    FLEET,
    FORMAT,
    OPERATOR,
    Format,
    called,
    print_json,
)


class What(StrEnum):
    """Which file."""

    run = "run"
    adapter = "adapter"
    heads = "heads"


def export(
    run_id: str = typer.Argument(help="The run's name."),
    what: What = typer.Argument(
        help="run: a zip of all there is; adapter: a zip that PEFT reads; heads: JSON lines."
    ),
    out: Path = typer.Argument(help="The file. What came of an earlier try is gone on with."),
    round_number: int = typer.Option(
        0, "--round", min=0, help="As it was after this round; 0: the newest."
    ),
    fleet: Path | None = FLEET,
    operator: Path | None = OPERATOR,
    address: str | None = ADDRESS,
    format_: Format = FORMAT,
) -> None:
    """Fetch a file of a run, whole and with its hash checked."""
    from sordino.protos.v1 import common_pb2

    kind = {
        What.run: common_pb2.ARTEFACT_KIND_RUN_ZIP,
        What.adapter: common_pb2.ARTEFACT_KIND_PEFT_ZIP,
        What.heads: common_pb2.ARTEFACT_KIND_LEDGER_HEADS_JSONL,
    }[what]
    with called(fleet, operator, address) as client:
        made = client.export(run_id, kind, out, round_number=round_number)
    if format_ is Format.json:
        print_json({"file": str(out), "sha256": made.sha256, "size": made.size})
    else:
        typer.echo(f"{out}: {made.size} bytes, SHA-256 {made.sha256}")
