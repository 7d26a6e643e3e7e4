"""`sordino bench`: what a step costs on this machine, beside what one would use instead."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

app = typer.Typer(help="Measure this machine.", no_args_is_help=True)

PACKAGES = ("sordino", "torch", "opacus", "peft", "transformers", "numpy")


@app.callback()
def bench() -> None:
    """Measure this machine."""


@app.command("step")
def step(
    variants: str = typer.Option(
        "main", "--variants", help="Groups (main, ffa, settings, allocator) and names, with commas."
    ),
    rounds: int = typer.Option(
        12, "--rounds", help="In each, every variant runs one step. Below 6: no 95 % interval."
    ),
    threads: int = typer.Option(1, "--threads", help="Threads of each process."),
    model: str | None = typer.Option(
        None, "--model", help="The base: a GGUF model's name or file (default: smollm2-135m)."
    ),
    quick: bool = typer.Option(
        False, "--quick", help="`pocket` and short records: tries the command, measures little."
    ),
    around: bool = typer.Option(
        True, help="Also measure the shared base, opening a model, and changing clients."
    ),
    json_path: Path | None = typer.Option(
        None, "--json", metavar="PATH", help="Write everything here, each round's times included."
    ),
) -> None:
    """Compare a private step with PEFT's and Opacus', each in its own process, taking turns."""
    from dataclasses import replace

    from sordino.cli.bench_tables import show
    from sordino.cli.progress import watching
    from sordino.client.bench.workload import Workload
    from sordino.client.model.store import cache_root
    from sordino.core.durable import write_whole
    from sordino.sim.bench.catalogue import choose
    from sordino.sim.bench.run import Request, run

    work = Workload(model="pocket", tokens=32, batch=4) if quick else Workload()
    request = Request(
        work=replace(work, model=model) if model else work,
        variants=choose(name.strip() for name in variants.split(",")),
        rounds=rounds,
        warm_up=1 if quick else 2,
        threads=threads,
        around=around,
    )
    console = Console()
    with watching(console) as progress:
        result = run(request, cache_root(), progress)
    about = describe()
    if json_path is not None:
        from dataclasses import asdict

        write_whole(json_path, json.dumps({**about, **asdict(result)}, indent=1) + "\n")
    show(result, about, console)


def describe() -> dict[str, Any]:
    """When and where: the date, the machine, the versions."""
    from dataclasses import asdict
    from importlib import metadata

    from sordino.cli.machine import read_machine

    return {
        "schema": "sordino.bench-step/1",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": asdict(read_machine()),
        "versions": {name: metadata.version(name) for name in PACKAGES},
    }
